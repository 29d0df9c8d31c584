"""The loop inside a function: gradients, all-reduce, apply, report; until an agreed stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable

from smlt.aggregation.collective import Collective
from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.aggregation.metric_sums import Metrics, added
from smlt.aggregation.phases import APPLY, COMPUTE
from smlt.aggregation.plan_trials import Way, trials_of
from smlt.aggregation.shard_plan import ShardPlan
from smlt.aggregation.step import AllReduce, StepResult
from smlt.aggregation.wire import Wire
from smlt.errors import SmltError, StoreError
from smlt.io.frame import Meta
from smlt.messages.job import JobSpec
from smlt.messages.worker import StepFlag
from smlt.worker.divergence_watch import DivergenceWatch
from smlt.worker.generation import Generation
from smlt.worker.gradient_tree import GradientTree
from smlt.worker.host import Compute
from smlt.worker.samples import Samples
from smlt.worker.schedule import Schedule, Slot
from smlt.worker.seeding import derive_seed
from smlt.worker.step_reports import LOSS, StepReports, means
from smlt.worker.target import Target
from smlt.worker.task import Contribution, Task

_OF_APPLYING = 1 << 21  # apart from the seeds of virtual workers, and of growth


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
        keep_best: Callable[[], Awaitable[bool]],
    ) -> None:
        self.step = 0
        self.trained = 0
        """The latest training step begun, counted from 1 as a user counts."""
        self.is_whole = True
        """False while the state is being changed, and after that has failed."""
        self.owes_best = False
        """Whether the latest step was the best evaluation, of weights that may not be kept yet."""
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
            wire_dtype=spec.wire_dtype,
        )
        self._partition(self._trials.way.plan)
        self._tree = GradientTree(self._buffer, len(samples.portions))
        members = collective.members
        self._reports = StepReports(generation, members.rank, members.world_size)
        self._watch = DivergenceWatch(
            generation, task, members.rank, members.world_size, every=spec.digest_steps
        )
        self._saved = generation.clock()

    async def run(self, step: int) -> StepFlag:
        """Take steps from ``step`` on until all ranks agree to stop; return why.

        Raises:
            NumbersError: this rank's loss is not finite.
            SmltError: the generation cannot go on, or was aborted.
            Exception: the user's task raised.
        """
        self.step = step
        try:
            if self._trials.is_over:
                await self._reports.shards(self._schedule.at(step).trained, self._trials)
            agreed = await self._until_agreed()
        except StoreError:
            raise  # nobody can be told anything
        except BaseException:
            # The steps before were taken, and count.
            with contextlib.suppress(SmltError):
                await self._reports.send(at_once=True)
            raise
        await self._reports.send(at_once=True)
        return agreed

    async def _until_agreed(self) -> StepFlag:
        done = self._target.reached or self._schedule.is_over(self.step)
        agreed = StepFlag.TARGET if done else StepFlag(0)
        while not agreed.stops:
            self._generation.step = self.step
            slot = self._schedule.at(self.step)
            self.trained = slot.trained + (not slot.evaluation)
            self._generation.trained = slot.trained
            agreed = await (self._evaluate if slot.evaluation else self._train)(slot, self._flags())
            await self._reports.send()
            if agreed & StepFlag.CHECKPOINT and not agreed.stops:
                self._saved = self._generation.clock()
                await self._save()
        return agreed

    def _flags(self) -> StepFlag:
        """Return what this rank has to say of the step, decided once."""
        flags = self._generation.flags() | self._checkpoint_due()
        if self._schedule.is_last(self.step):
            flags |= StepFlag.TARGET
        if self._schedule.grows_before(self.step + 1):
            flags |= StepFlag.GROWTH
        if self._schedule.begins(self.step + 1, self._spec.pause_after):
            flags |= StepFlag.PAUSE
        return flags

    async def _train(self, slot: Slot, flags: StepFlag) -> StepFlag:
        """Take one training step. State changes only when all means are in."""
        self._generation.state = "training"
        way = self._trials.way
        metrics = self._trials.told()
        absent: frozenset[str] = frozenset()

        def meta(shard: int) -> Meta:
            # The last shard is held back until the whole step is computed.
            last = shard == self._plan.shards - 1
            return Meta(self._buffer.presence(shard, absent), metrics if last else {})

        reduction = self._begin(slot, flags, way, meta)
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
            await self._compute(self._apply, present)
        self._taken()
        seconds = phases.stop()
        batch_size = self._samples.batch_size(slot.epoch)
        self._reports.record(slot, result, phases, seconds, batch_size)
        if self._trials.took(way, seconds):
            await self._reports.shards(slot.trained + 1, self._trials)
        return StepFlag(result.flags)

    def _begin(
        self, slot: Slot, flags: StepFlag, way: Way, meta: Callable[[int], Meta]
    ) -> AllReduce:
        """Begin to reduce an empty buffer, in a way of its own."""
        if way.plan is not self._plan:
            self._partition(way.plan)
        self._wire.go_over(way.dtype, self._buffer.flat.size)
        self._buffer.begin()
        return self._collective.begin(
            self.step,
            self._plan,
            self._buffer.flat,
            weight=self._samples.count(slot),
            flags=int(flags),
            meta=meta,
            wire=self._wire,
            transfers=way.transfers,
            trace=self._spec.trace,
        )

    def _partition(self, plan: ShardPlan) -> None:
        self._plan = plan
        self._buffer.partition(plan)

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
            return frozenset.intersection(*absent), added(metrics) | self._watch.own(slot.trained)

        found: tuple[frozenset[str], Metrics] = await self._compute(work)
        return found

    def _taken(self, *, owes_best: bool = False) -> None:
        """Count a step as soon as the state is that after it, whatever fails from then on."""
        self.is_whole, self.owes_best = True, owes_best
        self.step += 1
        self._generation.has_gained = True

    def _apply(self, present: frozenset[str]) -> None:
        # What an optimizer draws is the same on every rank, whatever its samples have drawn.
        self._task.seed_generators(derive_seed(self._spec.seed, self.step, _OF_APPLYING))
        self._task.apply(self._buffer.views, present)

    async def _compare(self, slot: Slot, result: StepResult) -> None:
        """Raise, on every rank alike, if their states were not equal."""
        try:
            await self._watch.compare(slot.trained, result.metas[-1].metrics, self._compute)
        except BaseException:
            self.is_whole = False  # they differ: none of them is to be trusted, or saved
            raise

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
        return {**own, LOSS: (contribution.loss_sum, count)}

    async def _evaluate(self, slot: Slot, flags: StepFlag) -> StepFlag:
        """Measure the test split; a numbered step, whose sums are reduced like gradients."""
        self._generation.state = "evaluating"
        began = self._generation.clock()
        sums = await self._compute(self._measure)
        result = await self._collective.sum_metrics(self.step, sums, flags=int(flags))
        metrics = means(result.metas[0].metrics)
        is_best = self._target.observe(metrics) and self._spec.keep_best is not None
        self._taken(owes_best=is_best)
        if is_best:
            self.owes_best = not await self._keep_best()
        await self._reports.evaluation(slot, metrics, self._generation.clock() - began)
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

    def _checkpoint_due(self) -> StepFlag:
        since = self._generation.clock() - self._saved
        due = self._collective.members.rank == 0 and since > self._spec.checkpoint_s
        return StepFlag.CHECKPOINT if due else StepFlag(0)
