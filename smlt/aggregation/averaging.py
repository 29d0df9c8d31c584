"""The weighted mean over ranks of whatever arrays a user has, in place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np

from smlt.aggregation.arrays import (
    Array,
    Flat,
    Item,
    difference,
    in_words,
    is_wide,
    layout_digest,
    layout_of,
)
from smlt.aggregation.group import Group, Operation
from smlt.aggregation.lanes import Readiness
from smlt.aggregation.plan_trials import PlanTrials
from smlt.aggregation.shard_plan import ShardPlan
from smlt.aggregation.wire import LOSSLESS, Wire
from smlt.errors import UserError
from smlt.io.frame import Dtype

logger = logging.getLogger(__name__)

# Flat buffers kept for the next step: fresh memory costs a page fault for every 4 KB.
_KEPT_BUFFERS = 4


class Averaging:
    """Averages through a group; remembers layouts on which the ranks have agreed, and buffers."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._agreed: set[str] = set()
        self._buffers: list[Flat] = []
        self._wires: dict[str, Wire] = {}
        self._trials: dict[str, PlanTrials] = {}
        self._layouts: dict[str, str] = {}
        self.is_trial = False
        """Whether the operation that began last decides how the next ones are done."""
        self._owed_before: dict[str, Flat] = {}

    @property
    def shards(self) -> dict[str, str]:
        """How each layout travels, in words, where that is settled."""
        settled = {digest: t for digest, t in self._trials.items() if t.is_over}
        return {self._layouts[digest]: str(trials) for digest, trials in settled.items()}

    def begin(self, found: Sequence[Item], weight: float) -> Operation:
        """Number the operations, now, and return what does them.

        float32, float16 and bfloat16 are averaged in float32, through the sharded step; float64
        and integers in float64.
        """
        narrow = [item for item in found if not is_wide(item)]
        wide = [item for item in found if is_wide(item)]
        layout = layout_of(found)
        digest = layout_digest(layout)
        self.is_trial = False
        calls: list[Operation] = []
        if digest not in self._agreed:
            self._agreed.add(digest)
            calls.append(self._group.agree(layout, lambda theirs: _disagreement(layout, theirs)))
        if narrow:
            calls.append(self._average_narrow(narrow, weight, digest))
        if wide:
            calls.append(self._average_wide(wide, weight))
        return partial(_one_by_one, calls)

    def owed(self) -> dict[str, Flat]:
        """Return a copy of what this rank owes of rounded values, by the digest of a layout.

        Raises:
            UserError: a reduction is under way.
        """
        if not all(wire.is_whole for wire in self._wires.values()):
            raise UserError("a reduction is under way, or has failed: take the state between steps")
        kept = {digest: wire.owed for digest, wire in self._wires.items()}
        return self._owed_before | {d: owed.copy() for d, owed in kept.items() if owed is not None}

    def owe(self, owed: dict[str, Flat]) -> None:
        """Go on from what ``owed`` returned."""
        self._wires.clear()
        self._owed_before = dict(owed)

    def _wire(self, digest: str, dtype: Dtype, elements: int) -> Wire:
        wire = self._wires.setdefault(digest, Wire())
        wire.go_over(dtype, elements)
        if wire.owed is not None and digest in self._owed_before:
            owed = self._owed_before.pop(digest)
            if owed.shape == wire.owed.shape:
                wire.owed[:] = owed
        return wire

    def _average_narrow(self, found: list[Item], weight: float, digest: str) -> Operation:
        own = found[0].shared if len(found) == 1 and weight == 1.0 else None
        flat = self._buffer(sum(prod(item.shape) for item in found)) if own is None else own
        if digest not in self._trials:
            self._trials[digest] = self._group.trials(flat.size, tries=True)
            self._layouts[digest] = in_words(found)
        trials = self._trials[digest]
        self.is_trial = not trials.is_over
        plan = trials.way.plan
        readiness = None if own is not None else Readiness()
        wire = self._wire(digest, trials.way.dtype, flat.size)
        reduction = self._group.reduce_flat(
            flat,
            weight=weight,
            what=f"allreduce of layout {digest}",
            readiness=readiness,
            wire=wire,
            trials=trials,
            lane=None if wire.dtype == LOSSLESS else int(digest, 16),
        )
        if readiness is not None:
            reduction = partial(self._copied, found, flat, plan, weight, readiness, reduction)
        return partial(self._tried, digest, reduction) if self.is_trial else reduction

    async def _tried(self, digest: str, reduction: Operation) -> None:
        await reduction()
        if self._trials[digest].is_over:
            job, layout = self._group.session.job, self._layouts[digest]
            logger.info("job %s: %s: %s", job, layout, self._trials[digest])

    async def _copied(
        self,
        found: list[Item],
        flat: Flat,
        plan: ShardPlan,
        weight: float,
        readiness: Readiness,
        reduction: Operation,
    ) -> None:
        """Reduce by way of a flat buffer: shards leave while later arrays are still copied."""
        loop = asyncio.get_running_loop()

        def announce(shard: int) -> None:
            loop.call_soon_threadsafe(readiness.announce, shard)

        filling = asyncio.create_task(asyncio.to_thread(_fill, flat, found, weight, plan, announce))
        reducing = asyncio.create_task(reduction())
        try:
            await asyncio.wait([filling, reducing], return_when=asyncio.FIRST_EXCEPTION)
            if filling.done() and (exc := filling.exception()) is not None:
                error = UserError(f"an array cannot be read: {type(exc).__name__} {exc}")
                raise await self._group.session.fail(error) from exc
            await reducing
        finally:
            reducing.cancel()
            await asyncio.gather(filling, reducing, return_exceptions=True)
        await asyncio.to_thread(_spill, flat, found)
        if len(self._buffers) < _KEPT_BUFFERS:
            self._buffers.append(flat)

    def _average_wide(self, found: list[Item], weight: float) -> Operation:
        # The weight rides behind the values: it adds up like them.
        flat = np.empty(sum(prod(item.shape) for item in found) + 1, np.float64)
        _fill(flat, found, weight)
        flat[-1] = weight
        return partial(self._divided, found, flat, self._group.all_reduce(flat, "sum"))

    async def _divided(self, found: list[Item], flat: Array, reduction: Operation) -> None:
        await reduction()
        if flat[-1]:
            flat /= flat[-1]
        await asyncio.to_thread(_spill, flat, found)

    def _buffer(self, elements: int) -> Flat:
        for index, buffer in enumerate(self._buffers):
            if buffer.size == elements:
                return self._buffers.pop(index)
        # Of another size: the layout has changed, and those kept may never be of use again.
        self._buffers.clear()
        return np.empty(elements, np.float32)


async def _one_by_one(calls: list[Operation]) -> None:
    for call in calls:
        await call()


def _fill(
    flat: Array,
    found: Sequence[Item],
    weight: float,
    plan: ShardPlan | None = None,
    announce: Callable[[int], None] = lambda shard: None,
) -> None:
    """Copy weighted arrays into a flat buffer, announcing the shards that are full."""
    filled = shard = 0
    for item in found:
        view = flat[filled : filled + prod(item.shape)].reshape(item.shape)
        if weight:
            item.read(view)
        else:
            view.fill(0.0)  # of no weight, even where it is infinite
        if weight != 1.0:
            view *= weight
        filled += view.size
        while plan is not None and shard < plan.shards and plan.span(shard).stop <= filled:
            announce(shard)
            shard += 1


def _spill(flat: Array, found: Sequence[Item]) -> None:
    start = 0
    for item in found:
        size = prod(item.shape)
        item.write(flat[start : start + size].reshape(item.shape))
        start += size


def _disagreement(ours: bytes, theirs: bytes) -> str:
    return (
        f"ranks average different arrays ({difference(ours, theirs)}): all have to pass the same"
        " names, shapes and dtypes, in the same order of calls"
    )
