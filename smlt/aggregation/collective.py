"""The steps of one generation, one after the other, as one rank takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from smlt.aggregation.notices import Notices
from smlt.aggregation.plan_trials import TRANSFERS
from smlt.aggregation.shard_plan import ShardPlan, plan_shards
from smlt.aggregation.step import AllReduce, StepResult
from smlt.aggregation.transfer import Membership, Shard, Transfer
from smlt.aggregation.wire import Wire
from smlt.io.frame import Meta


class Collective:
    """Starts each step's all-reduce, and has it free the frames of the step before."""

    def __init__(self, members: Membership, notices: Notices) -> None:
        self.members = members
        self._transfer = Transfer(members, notices)
        self._stale: list[str] = []

    def begin(
        self,
        step: int,
        plan: ShardPlan,
        flat: Shard,
        *,
        weight: float,
        flags: int,
        meta: Callable[[int], Meta],
        wire: Wire | None = None,
        transfers: int = TRANSFERS,
        trace: bool = False,
    ) -> AllReduce:
        """Begin the all-reduce of a flat buffer; nothing moves until its shards are ready.

        ``weight`` is what the contribution, a sum, counts for; ``meta(shard)`` is asked when the
        shard is ready. Without a ``wire`` values travel as they are. At most ``transfers`` frames
        are under way in each direction. With ``trace`` the step's phases keep every span.
        """
        self._transfer.allow(transfers)
        reduction = AllReduce(
            self._transfer,
            plan,
            flat,
            step=step,
            weight=weight,
            flags=flags,
            meta=meta,
            wire=wire or Wire(),
            stale=self._stale,
            trace=trace,
        )
        self._stale = reduction.frames()
        return reduction

    async def sum_metrics(
        self, step: int, metrics: Mapping[str, tuple[float, float]], *, flags: int
    ) -> StepResult:
        """Add up named (sum, weight) pairs over all ranks, in the order of ranks, in float64."""
        plan = plan_shards(0, world_size=self.members.world_size, shard_bytes=1 << 20)
        meta = Meta(metrics=dict(metrics))
        reduction = self.begin(
            step, plan, np.empty(0, np.float32), weight=1.0, flags=flags, meta=lambda _: meta
        )
        reduction.ready(0)
        return await reduction.run()
