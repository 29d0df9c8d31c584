"""The loop inside a function: gradients, all-reduce, apply, report; until an agreed stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from smlt.aggregation.collective import Collective
from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.aggregation.metric_sums import Metrics, added
from smlt.aggregation.phases import APPLY, COMPUTE, Phases
from smlt.aggregation.plan_trials import trials_of
from smlt.aggregation.step import AllReduce, StepResult
from smlt.aggregation.wire import Wire
from smlt.errors import SmltError, StoreError
from smlt.io.frame import Meta
from smlt.messages import JobSpec, PhaseRecord, StepFlag, StepRecord, WorkerReport
from smlt.worker import divergence
from smlt.worker.divergence import DivergedError
from smlt.worker.generation import Generation
from smlt.worker.gradient_tree import GradientTree
from smlt.worker.host import Compute
from smlt.worker.samples import Samples
from smlt.worker.schedule import Schedule, Slot
from smlt.worker.seeding import derive_seed
from smlt.worker.target import Target
from smlt.worker.task import Contribution, Task

# Progress reaches the client in batches, not more often than this.
_REPORT_S = 0.5
# All ranks together report their phases not more often than this.
_PHASES_S = 0.01
_LOSS = "loss"
# So long may ranks take to tell where they differ.
_DIGESTS_S = 5.0


class NumbersError(SmltError):
    """A rank's loss is not finite; going on would only spread it."""


class Trainer:
    """One rank's training loop over the steps of a generation.

    Its state between steps is the task's (equal on all ranks, bit for bit), the target's, and the
    number of the next step. Nothing else carries over.
    """

    def __init__(
        self,
        task: Task,
        spec: JobSpec,
        generation: Generation,
        collective: Collective,
        wire: Wire,
        samples: Samples,
        schedule: Schedule,
        target: Target,
        compute: Compute,
        save: Callable[[], Awaitable[None]],
        keep_best: Callable[[], Awaitable[None]],
    ) -> None:
        self.step = 0
        self.trained = 0
        """The latest training step begun, counted from 1 as a user counts."""
        self.is_whole = True
        """False while the state is being changed, and after that has failed."""
        self._task = task
        self._spec = spec
        self._generation = generation
        self._collective = collective
        self._wire = wire
        self._samples = samples
        self._schedule = schedule
        self._target = target
        self._compute = compute
        self._save = save
        self._keep_best = keep_best
        self._buffer = GradientBuffer(task.averaged())
        self._trials = trials_of(
            self._buffer.flat.size,
            collective.members.world_size,
            shard_bytes=spec.shard_bytes,
            aggregators=spec.aggregators,
            tries=spec.tries_plans,
        )
        self._plan = self._trials.way.plan
        self._buffer.partition(self._plan)
        self._tree = GradientTree(self._buffer, len(samples.portions))
        self._equal_at: int | None = None
        self._records: list[dict[str, Any]] = []
        self._phases: list[dict[str, Any]] = []
        self._sent = Counter(generation.store.requests)
        self._reported = self._told = self._saved = self._generation.clock()

    async def run(self, step: int) -> StepFlag:
        """Take steps from ``step`` on until all ranks agree to stop; return why.

        Raises:
            NumbersError: this rank's loss is not finite.
            SmltError: the generation cannot go on, or was aborted.
            Exception: the user's task raised.
        """
        self.step = step
        try:
            agreed = await self._until_agreed()
        except StoreError:
            raise  # nobody can be told anything
        except BaseException:
            # The steps before were taken, and count.
            with contextlib.suppress(SmltError):
                await self._report(at_once=True)
            raise
        await self._report(at_once=True)
        return agreed

    async def _until_agreed(self) -> StepFlag:
        done = self._target.reached or self._schedule.is_over(self.step)
        agreed = StepFlag.TARGET if done else StepFlag(0)
        while not agreed.stops:
            self._generation.step = self.step
            slot = self._schedule.at(self.step)
            self.trained = slot.trained + (not slot.evaluation)
            self._generation.trained = slot.trained
            flags = self._generation.flags() | self._checkpoint_due()
            if self._schedule.is_last(self.step):
                flags |= StepFlag.TARGET
            if self._schedule.grows_before(self.step + 1):
                flags |= StepFlag.GROWTH
            if self._schedule.begins(self.step + 1, self._spec.pause_after):
                flags |= StepFlag.PAUSE
            agreed = await (self._evaluate if slot.evaluation else self._train)(slot, flags)
            self.step += 1
            self._generation.has_gained = True
            await self._report()
            if agreed & StepFlag.CHECKPOINT and not agreed.stops:
                self._saved = self._generation.clock()
                await self._save()
        return agreed

    async def _train(self, slot: Slot, flags: StepFlag) -> StepFlag:
        """Take one training step. State changes only when all means are in."""
        self._generation.state = "training"
        way = self._trials.way
        if way.plan is not self._plan:
            self._plan = way.plan
            self._buffer.partition(way.plan)
        count = self._samples.count(slot)
        metrics = self._trials.told()
        absent: frozenset[str] = frozenset()

        def meta(shard: int) -> Meta:
            # The last shard is held back until the whole step is computed.
            last = shard == self._plan.shards - 1
            return Meta(self._buffer.presence(shard, absent), metrics if last else {})

        self._buffer.begin()
        reduction = self._collective.begin(
            self.step,
            self._plan,
            self._buffer.flat,
            weight=count,
            flags=int(flags),
            meta=meta,
            wire=self._wire,
            transfers=way.transfers,
            trace=self._spec.trace,
        )
        phases = reduction.phases
        reducing = asyncio.create_task(reduction.run())
        try:
            with phases.during(COMPUTE):
                absent, own = await self._gradients(slot, reduction)
            metrics.update(own)
            self._buffer.finish(reduction.ready)
            reduction.ready(self._plan.shards - 1)
            result = await reducing
            self._trials.learn(result.metas[-1].metrics)
            await self._compare(slot, result)
        finally:
            reducing.cancel()
            await asyncio.gather(reducing, return_exceptions=True)
        present = self._buffer.present([meta.present for meta in result.metas])
        self.is_whole = False
        with phases.during(APPLY):
            await self._compute(self._task.apply, self._buffer.views, present)
        self.is_whole = True
        self._record(slot, result, phases)
        return StepFlag(result.flags)

    async def _gradients(self, slot: Slot, reduction: AllReduce) -> tuple[frozenset[str], Metrics]:
        """Compute this rank's gradient sums; shards go out while backward still runs."""
        loop = asyncio.get_running_loop()
        held_back = self._plan.shards - 1

        def announce(shard: int) -> None:
            if shard != held_back:
                reduction.ready(shard)

        def ready(name: str) -> None:
            loop.call_soon_threadsafe(self._buffer.ready, name, announce)

        def work() -> tuple[frozenset[str], Metrics]:
            absent, metrics = [], []
            for index, portion in enumerate(self._samples.portions):
                # Transforms and the model draw from the same freshly seeded generators.
                self._task.seed_generators(self._seed(portion))
                samples = self._samples.training()
                into = self._tree.leaf(index, ready)
                if samples:
                    contribution = self._task.gradients(samples, *into)
                else:  # the last batch of an epoch may be too short for every portion
                    contribution = Contribution(0.0, frozenset(self._buffer.names))
                self._tree.add(index)
                absent.append(contribution.absent)
                metrics.append(self._own_metrics(slot, contribution, portion))
            return frozenset.intersection(*absent), added(metrics) | self._own_digest(slot)

        found: tuple[frozenset[str], Metrics] = await self._compute(work)
        return found

    def _own_digest(self, slot: Slot) -> Metrics:
        """Return this rank's digest of the state of the step's start, where it is compared."""
        every, members = self._spec.digest_steps, self._collective.members
        if members.world_size == 1 or not every or slot.trained % every:
            return {}
        if not divergence.is_asked(members.rank, members.world_size, slot.trained // every):
            return {}
        return divergence.as_metric(members.rank, divergence.digests_of(self._task))

    async def _compare(self, slot: Slot, result: StepResult) -> None:
        """Raise DivergedError, on every rank alike, if their states were not equal."""
        held = divergence.take_from(result.metas[-1].metrics)
        if len(set(held.values())) <= 1:
            self._equal_at = slot.trained if held else self._equal_at
            return
        # None of them is to be trusted, or saved.
        self.is_whole = False
        generation, ranks = self._generation, self._collective.members.world_size
        await generation.tell_digests(await self._compute(divergence.digests_of, self._task))
        give_up = generation.clock() + _DIGESTS_S
        while len(generation.digests) < ranks and generation.clock() < give_up:
            await generation.next_news(_DIGESTS_S)
        where = divergence.describe(generation.digests, ranks)
        since = "the start" if self._equal_at is None else f"step {self._equal_at}"
        raise DivergedError(
            f"{where}, after step {slot.trained}: a worker's memory was damaged, or the task "
            f"depends on its rank; they were last seen equal at {since}"
        )

    def _seed(self, portion: range) -> int:
        # From (seed, step, first virtual worker): no generator's state carries over.
        return derive_seed(self._spec.seed, self.step, portion.start)

    def _own_metrics(self, slot: Slot, contribution: Contribution, portion: range) -> Metrics:
        if not math.isfinite(contribution.loss_sum):
            raise NumbersError(
                f"the loss at step {slot.trained + 1} is {contribution.loss_sum}: a smaller "
                "learning rate or gradient clipping (clip_norm) may help"
            )
        own: Metrics = {
            name: (metric.total, metric.weight)
            for name, metric in self._task.drain_metrics().items()
        }
        count = self._samples.portion_count(slot, portion)
        return {**own, _LOSS: (contribution.loss_sum, count)}

    async def _evaluate(self, slot: Slot, flags: StepFlag) -> StepFlag:
        """Measure the test split; a numbered step, whose sums are reduced like gradients."""
        self._generation.state = "evaluating"
        sums = await self._compute(self._measure)
        result = await self._collective.sum_metrics(self.step, sums, flags=int(flags))
        metrics = _means(result.metas[0].metrics)
        if self._target.observe(metrics) and self._spec.keep_best:
            await self._keep_best()
        if self._is_reporter:
            # The steps before it come first, so that whoever reads of it knows where it stands.
            await self._report(at_once=True)
            report = WorkerReport(
                rank=self._generation.task.rank,
                kind="evaluation",
                step=slot.trained,
                epoch=slot.epoch,
                metrics=metrics,
            )
            await self._generation.report(report)
        reached = StepFlag.TARGET if self._target.reached else StepFlag(0)
        return StepFlag(result.flags) | reached

    def _measure(self) -> Metrics:
        return added([self._measure_portion(portion) for portion in self._samples.portions])

    def _measure_portion(self, portion: range) -> Metrics:
        sums: Metrics = {}
        self._task.seed_generators(self._seed(portion))
        for samples in self._samples.evaluation(portion):
            for name, metric in self._task.measure(samples).items():
                total, weight = sums.get(name, (0.0, 0.0))
                sums[name] = (total + metric.total, weight + metric.weight)
        return sums

    @property
    def _is_reporter(self) -> bool:
        """What is equal on all ranks is reported by one."""
        return self._collective.members.rank == 0

    def _checkpoint_due(self) -> StepFlag:
        due = self._is_reporter and self._generation.clock() - self._saved > self._spec.checkpoint_s
        return StepFlag.CHECKPOINT if due else StepFlag(0)

    def _record(self, slot: Slot, result: StepResult, phases: Phases) -> None:
        seconds = phases.stop()
        self._trials.took(seconds)
        step = slot.trained + 1
        sent = Counter(self._generation.store.requests)
        told = PhaseRecord(
            step=step,
            seconds=seconds,
            phases=phases.seconds,
            requests=dict(sent - self._sent),
            spans=phases.spans,
        )
        self._sent = sent
        self._phases.append(told.to_dict())
        metrics = _means(result.metas[-1].metrics)
        record = StepRecord(
            step=step,
            epoch=slot.epoch,
            loss=metrics.pop(_LOSS, math.nan),
            samples=int(result.weight),
            seconds=seconds,
            metrics=metrics,
            batch_size=self._samples.batch_size(slot.epoch),
        )
        if self._is_reporter:
            self._records.append(record.to_dict())

    async def _report(self, *, at_once: bool = False) -> None:
        now = self._generation.clock()
        if self._records and (at_once or now - self._reported > _REPORT_S):
            records, self._records, self._reported = self._records, [], now
            await self._tell("steps", records)
        every_s = max(2 * _REPORT_S, _PHASES_S * self._collective.members.world_size)
        if self._phases and (at_once or now - self._told > every_s):
            phases, self._phases, self._told = self._phases, [], now
            await self._tell("phases", phases)

    async def _tell(self, kind: str, records: list[dict[str, Any]]) -> None:
        report = WorkerReport(rank=self._generation.task.rank, kind=kind, steps=records)
        await self._generation.report(report)


def _means(sums: Metrics) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight}
