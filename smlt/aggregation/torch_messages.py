"""Messages from rank to rank under ``torch.distributed``: send, receive, from any source."""

# torch declares short forms for direct callers, too; torch.distributed itself uses but these.
# mypy: disable-error-code="override"

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from smlt.aggregation.group import Group
from smlt.aggregation.options import member
from smlt.aggregation.tensors import byte_view
from smlt.aggregation.torch_member import Member
from smlt.aggregation.torch_work import SmltWork
from smlt.aggregation.torch_world import World

Tensors = Sequence[torch.Tensor]


class Messages(Member):
    """The n-th message from one rank to another under a tag is the n-th that is received.

    Who receives from any source takes the first that comes; until then it is not known which
    messages are left for what is received after it under that tag.
    """

    def __init__(self, world: World, group: Group, name: str) -> None:
        super().__init__(world, group, name)
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()
        self._known: dict[int, asyncio.Event] = {}

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> Any:
        group, data = self.joined, byte_view(tensors[0]).array
        member("receiver", to, self.group_size)
        label = f"p{to}.{tag}.{self._sent[to, tag]}"
        self._sent[to, tag] += 1
        return self.work([lambda: group.send(label, data, to)], [], tensors)

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> Any:
        return self._receive(tensors, [member("sender", source, self.group_size)], tag)

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Any:
        others = [rank for rank in range(self.group_size) if rank != self.group_rank]
        return self._receive(tensors, others, tag)

    def _receive(self, tensors: Tensors, sources: Sequence[int], tag: int) -> SmltWork:
        group, place, work = self.joined, byte_view(tensors[0]), SmltWork(tensors)
        before, known = self._known.get(tag), asyncio.Event()
        self._known[tag] = known

        def takes_from(source: int) -> None:
            work.source = source
            self._received[source, tag] += 1
            known.set()

        async def receive() -> None:
            try:
                if before is not None:
                    await before.wait()
                labels = [self._next_label(source, tag) for source in sources]
                if len(sources) == 1:
                    takes_from(sources[0])
                index = await group.receive(labels, place.array)
                if len(sources) > 1:
                    takes_from(sources[index])
            finally:
                known.set()

        return self.work([receive], [place], tensors, work)

    def _next_label(self, source: int, tag: int) -> tuple[str, int]:
        return f"p{self.group_rank}.{tag}.{self._received[source, tag]}", source
