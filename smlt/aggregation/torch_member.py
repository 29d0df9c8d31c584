"""One rank's end of a group, as ``torch.distributed`` sees it: who it is, and its work."""

# torch declares short forms for direct callers, too; torch.distributed itself uses but these.
# mypy: disable-error-code="override, assignment"

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

from torch import distributed

from smlt.aggregation.group import Group, Operation
from smlt.aggregation.overlapping import OverlappingReductions
from smlt.aggregation.tensors import Staged
from smlt.aggregation.torch_work import SmltWork
from smlt.aggregation.torch_world import World
from smlt.errors import UserError
from smlt.io.together import together

# Threads that resolve futures: callbacks may run other collectives and wait for them.
_RESOLVERS = 64


class Member(distributed.ProcessGroup):
    """A process group without operations; ``work`` starts some, and returns at once."""

    def __init__(self, world: World, group: Group, name: str) -> None:
        super().__init__(group.rank, group.world_size)  # type: ignore[call-arg]
        self.group_size = group.world_size
        self.group_rank = group.rank
        self._world = world
        self.reductions = OverlappingReductions(group)
        self._group: Group | None = group
        self._registered_name = name
        self._resolvers = concurrent.futures.ThreadPoolExecutor(
            _RESOLVERS, thread_name_prefix="smlt-torch-done"
        )

    def getBackendName(self) -> str:
        return "smlt"

    def getGroupName(self) -> str:
        return self._registered_name

    @property
    def group_name(self) -> str:
        return self._registered_name

    @property
    def shards(self) -> Mapping[str, str]:
        """How sums and averages of float32 travel, in words, as ``Aggregator.shards`` tells it."""
        return self.reductions.shards

    def size(self) -> int:
        return self.group_size

    def rank(self) -> int:
        return self.group_rank

    @property
    def trusts_pickle(self) -> bool:
        """Whether objects of other ranks may be of any class, and run code of theirs."""
        return self._world.trusts_pickle

    def shutdown(self) -> None:
        """Leave the group; the last group to go leaves the job. Idempotent."""
        group, self._group = self._group, None
        if group is not None:
            self._world.close_group(group)
            self._resolvers.shutdown(wait=False)

    abort = shutdown

    @property
    def joined(self) -> Group:
        if self._group is None:
            raise UserError("the process group has been destroyed")
        return self._group

    def work(
        self,
        calls: Sequence[Operation],
        back: Sequence[Staged],
        result: Any,
        work: SmltWork | None = None,
    ) -> SmltWork:
        """Start operations that are numbered already, and return a Work for all of them."""
        work = work or SmltWork(result)

        async def run() -> None:
            error: BaseException | None = None
            try:
                await together(call() for call in calls)
                for each in back:
                    each.copy_back()
            except asyncio.CancelledError as cancelled:
                error = cancelled
                raise
            except Exception as failed:
                error = failed
            finally:
                self._resolvers.submit(work.settle, error)

        self._world.thread.submit(run())
        return work
