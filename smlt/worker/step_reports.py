"""What a rank tells the client of its steps: in batches, and not more often than need be."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from smlt.aggregation.metric_sums import Metrics
from smlt.aggregation.phases import Phases
from smlt.aggregation.plan_trials import PlanTrials
from smlt.aggregation.step import StepResult
from smlt.messages.worker import PhaseRecord, ShardsRecord, StepRecord, WorkerReport
from smlt.worker.generation import Generation
from smlt.worker.schedule import Slot

LOSS = "loss"
# Progress reaches the client in batches, not more often than this.
_REPORT_S = 0.5
# All ranks together report their phases not more often than this.
_PHASES_S = 0.01


class StepReports:
    """Collects the records of steps, and sends them when it is time."""

    def __init__(self, generation: Generation, rank: int, ranks: int) -> None:
        """Report as one of the ranks of the roster; of what is equal on all, the first tells."""
        self._generation = generation
        self._tells_steps = rank == 0
        self._phases_every_s = max(2 * _REPORT_S, _PHASES_S * ranks)
        self._steps: list[dict[str, Any]] = []
        self._phases: list[dict[str, Any]] = []
        self._requests = Counter(generation.store.requests)
        self._steps_sent = self._phases_sent = generation.clock()

    def record(
        self, slot: Slot, result: StepResult, phases: Phases, seconds: float, batch_size: int
    ) -> None:
        """Note a training step that was taken."""
        step, requests = slot.trained + 1, Counter(self._generation.store.requests)
        told = PhaseRecord(
            step=step,
            seconds=seconds,
            phases=phases.seconds,
            requests=dict(requests - self._requests),
            spans=phases.spans,
        )
        self._requests = requests
        self._phases.append(told.to_dict())
        if not self._tells_steps:
            return
        metrics = means(result.metas[-1].metrics)
        record = StepRecord(
            step=step,
            epoch=slot.epoch,
            loss=metrics.pop(LOSS, math.nan),
            samples=int(result.weight),
            seconds=seconds,
            metrics=metrics,
            batch_size=batch_size,
        )
        self._steps.append(record.to_dict())

    async def shards(self, step: int, trials: PlanTrials) -> None:
        """Tell how gradients travel once ``step`` training steps are done, and why so."""
        if not self._tells_steps:
            return
        way = trials.way
        record = ShardsRecord(
            step=step,
            text=str(trials),
            shards=way.plan.shards,
            shard_bytes=way.shard_bytes,
            aggregators=len(way.plan.owners),
            transfers=way.transfers,
            wire_dtype=way.dtype,
            tried={str(way): seconds for way, seconds in trials.times.items()},
        )
        await self._tell("shards", [record.to_dict()])

    async def evaluation(self, slot: Slot, metrics: dict[str, float], seconds: float) -> None:
        """Tell what an evaluation has measured, and how long it took."""
        if not self._tells_steps:
            return
        # The steps before it come first, so that whoever reads of it knows where it stands.
        await self.send(at_once=True)
        report = WorkerReport(
            rank=self._generation.task.rank,
            kind="evaluation",
            step=slot.trained,
            epoch=slot.epoch,
            metrics=metrics,
            seconds=seconds,
        )
        await self._generation.report(report)

    async def send(self, *, at_once: bool = False) -> None:
        """Send what there is, if it is time or it must not wait."""
        now = self._generation.clock()
        if self._steps and (at_once or now - self._steps_sent > _REPORT_S):
            steps, self._steps, self._steps_sent = self._steps, [], now
            await self._tell("steps", steps)
        if self._phases and (at_once or now - self._phases_sent > self._phases_every_s):
            phases, self._phases, self._phases_sent = self._phases, [], now
            await self._tell("phases", phases)

    async def _tell(self, kind: str, records: list[dict[str, Any]]) -> None:
        report = WorkerReport(rank=self._generation.task.rank, kind=kind, steps=records)
        await self._generation.report(report)


def means(sums: Metrics) -> dict[str, float]:
    """Return each metric's mean; what has no weight has none."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
