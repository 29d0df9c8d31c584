"""Bring a rank to its generation's first step: the task, its data, and the parent's state."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

from smlt.aggregation.wire import LOSSLESS, Wire
from smlt.config.sharding import AUTO
from smlt.errors import CheckpointError, ConfigError, SmltError, TaskError
from smlt.io import checkpoint
from smlt.io.checkpoint import CheckpointWriter
from smlt.io.manifest import Manifest
from smlt.io.object_store import ObjectStore
from smlt.io.tensor import as_tensor
from smlt.io.weights import read_weights
from smlt.messages.job import EXACT, JobSpec, JobState, Position
from smlt.messages.worker import WorkerReport
from smlt.worker import numerics
from smlt.worker.course import Course
from smlt.worker.data_iterator import Data
from smlt.worker.epochs import batches_of
from smlt.worker.generation import Generation, Roster
from smlt.worker.host import Host
from smlt.worker.residuals import load_residuals
from smlt.worker.samples import Samples
from smlt.worker.schedule import Schedule
from smlt.worker.seeding import derive_seed
from smlt.worker.target import Target
from smlt.worker.task import Task
from smlt.worker.task_loader import load_task
from smlt.worker.warm import Tag

_POLL_S = 0.1
_SAMPLES = "train_samples"
_HOST = "host"
_DATA = "data"
_GROWN = "grown"  # the last epoch whose growth the state has
_OF_GROWTH = 1 << 20  # apart from the seeds of steps and their virtual workers

TRAINED = "trained"
"""In a manifest's info: training steps done, which is what a user calls the step."""

T = TypeVar("T")


class HostError(SmltError):
    """This host cannot compute the bits that an exact job began with."""


class UnreadableParentError(CheckpointError):
    """The checkpoint that the generation begins from is damaged, or of another version."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rank that is ready for the first step of its generation."""

    task: Task
    target: Target
    samples: Samples
    schedule: Schedule
    wire: Wire
    parent: Manifest
    """The committed state that it begins from."""
    step: int
    """The first step to take: the parent's, unless the job was made longer."""
    about: dict[str, Any]
    """What the manifests of all later states say of the job's data and model."""
    has_grown: bool
    """Whether the model was changed since the parent was saved."""

    def info(self, step: int) -> dict[str, Any]:
        """Return what the manifest of a later state of this job says beside the state."""
        return {**self.parent.info, **self.about, TRAINED: self.schedule.at(step).trained}

    def writer(
        self, objects: ObjectStore, job_id: str, at: Position, parts: int, *, copy: bool = False
    ) -> CheckpointWriter:
        """Return a writer of the state as it is now; of a copy, if it changes meanwhile."""
        scalars = {"task": self.task.scalars(), "target": self.target.scalars()}
        tensors = {name: as_tensor(array) for name, array in self.task.state().items()}
        if copy:
            tensors = {name: replace(t, data=t.data.copy()) for name, t in tensors.items()}
            scalars = deepcopy(scalars)
        return CheckpointWriter(objects, job_id, at, tensors, scalars, parts=parts)


class Loader:
    """Loads one rank. Nothing is kept in it between invocations."""

    def __init__(
        self,
        generation: Generation,
        roster: Roster,
        job: JobState,
        objects: ObjectStore,
        host: Host,
    ) -> None:
        self._generation = generation
        self._roster = roster
        self._job = job
        self._spec: JobSpec = job.spec
        self._objects = objects
        self._host = host
        self._compute = host.compute
        self._rank = roster.ranks.index(generation.task.rank)

    async def load(self) -> Loaded:
        """Return the rank with the parent's state, from its own memory if it is there.

        Raises:
            TaskError: the task or its data are not what a task needs.
            CheckpointError: the parent cannot be read, or state 0 was not made in time.
            Exception: the user's code raised.
        """
        await self._generation.say("loading")
        spec, compute = self._spec, self._compute
        self._check_wire()
        task, manifest = await self._reading(self._warm())
        fresh = task is None
        if task is None:
            task = await compute(load_task, spec.target, spec.params, self._host.code_root)
        course = await compute(Course.of, task, await self._data(), spec)
        target = Target.of(spec)
        if fresh:
            await compute(task.initialize, spec.seed, course.known_steps)
        if manifest is None:
            manifest = await self._state_zero(task, target, len(course.train))
        await self._check_host(manifest)
        self._check_samples(manifest, len(course.train))
        target.load(manifest.scalars["target"])
        if fresh:
            await self._reading(self._take_over(task, manifest, course))
        schedule, grown = course.schedule, manifest.info.get(_GROWN, 0)
        step = schedule.step_after(manifest.position.step, manifest.info.get(TRAINED, 0))
        due = course.growths(grown, step)
        await compute(self._grow, task, due)
        wire = await self._reading(self._wire(task, manifest, is_new=bool(due)))
        if self._rank == 0:
            await self._report_plan(task, course)
        samples = course.samples(self._rank, self._roster.world_size, step)
        about = {_SAMPLES: len(course.train), _DATA: spec.data, _GROWN: max([grown, *due])}
        return Loaded(
            task, target, samples, schedule, wire, manifest, step, about, has_grown=bool(due)
        )

    def _check_wire(self) -> None:
        spec = self._spec
        if spec.determinism == EXACT and spec.wire_dtype != "fp32":
            raise ConfigError(
                f"exact determinism needs gradients as they are, and {spec.wire_dtype} on the wire "
                "may round them by rank: use fp32, or --determinism fast"
            )

    def _check_samples(self, manifest: Manifest, samples: int) -> None:
        before = manifest.info.get(_SAMPLES)
        if manifest.info.get(_DATA, self._spec.data) == self._spec.data and before != samples:
            raise TaskError(
                f"dataset() gave {samples} training samples on rank {self._rank}, but the job "
                f"began with {before}: it must not depend on the rank"
            )

    def _grow(self, task: Task, epochs: Sequence[int]) -> None:
        """Change the model as it was, or is to be, before some epochs."""
        for epoch in epochs:
            task.seed_generators(derive_seed(self._spec.seed, epoch, _OF_GROWTH))
            task.grow(epoch)

    async def _reading(self, parent: Awaitable[T]) -> T:
        """Tell a parent that cannot be read from what a new attempt might mend."""
        try:
            return await parent
        except CheckpointError as error:
            raise UnreadableParentError(str(error)) from error

    async def _check_host(self, manifest: Manifest) -> None:
        """Compare this host with the one that the job began on.

        Raises:
            HostError: it computes with other bits, and the job is ``exact``.
        """
        began = manifest.info.get(_HOST, {})
        differs = numerics.difference(began, await self._compute(numerics.of_this_host))
        if not differs:
            return
        if self._spec.determinism == EXACT:
            raise HostError(
                f"this host computes with other bits than the one that the job began on ({differs})"
                ", which exact determinism does not allow: resume it where it began, or train with "
                "--determinism fast"
            )
        text = f"not all workers compute alike: {differs}; the promise of the same bits lapses"
        await self._generation.report(
            WorkerReport(rank=self._generation.task.rank, kind="notice", text=text)
        )

    async def _warm(self) -> tuple[Task | None, Manifest | None]:
        """Return the task of this environment's memory, if it is the parent, and the parent.

        Nothing at all where a job has no state yet.
        """
        parent = self._job.parent
        if parent is None:
            return None, None
        manifest = await checkpoint.read_manifest(self._objects, self._job.job_id, parent)
        tag = Tag.of(self._job.job_id, self._spec, parent.step, manifest.digest)
        return self._host.memory.take(tag), manifest

    async def _data(self) -> Data:
        manifest: dict[str, Any] = {"files": {}}
        if self._spec.data is not None:
            text, _ = await self._objects.get(self._spec.data)
            manifest = json.loads(text)
        elif self._host.data_dir is not None:
            mounted: Data = await self._compute(Data.local, self._host.data_dir)
            return mounted
        return Data.stored(
            manifest["files"],
            fetch=self._objects.read_range,
            local_path=self._objects.local_path,
            cache_dir=self._host.cache_dir,
            added=manifest.get("added"),
        )

    async def _state_zero(self, task: Task, target: Target, samples: int) -> Manifest:
        """Have the first rank make and commit state 0; all ranks begin from what it committed."""
        at = Position(generation=self._job.generation, step=0)
        if self._rank == 0:
            if self._spec.init_from is not None:
                weights = await read_weights(self._objects, self._spec.init_from)
                await self._compute(task.load_weights, weights)
            host = await self._compute(numerics.of_this_host)
            scalars = {"task": task.scalars(), "target": target.scalars()}
            parts = self._roster.world_size
            writer = CheckpointWriter(
                self._objects, self._job.job_id, at, task.state(), scalars, parts=parts
            )
            for part in range(self._roster.world_size):
                await writer.write_part(part)
            info = {_SAMPLES: samples, _DATA: self._spec.data, _HOST: host}
            await writer.commit(parent=None, info=info)
            await self._generation.announce("committed", 0)
        await self._until_committed(at)
        return await checkpoint.read_manifest(self._objects, self._job.job_id, at)

    async def _until_committed(self, at: Position) -> None:
        generation = self._generation
        give_up = generation.clock() + generation.limits.load_s
        while await checkpoint.newest(self._objects, self._job.job_id, at.generation) is None:
            generation.notices.check()
            if generation.clock() > give_up:
                raise CheckpointError(
                    f"rank {self._roster.ranks[0]} did not commit the first state within "
                    f"{generation.limits.load_s:g} s"
                )
            await generation.next_news(_POLL_S)

    async def _take_over(self, task: Task, manifest: Manifest, course: Course) -> None:
        # Growth is gone through for the shapes alone: what the arrays hold is loaded then.
        grown = manifest.info.get(_GROWN, 0)
        await self._compute(self._grow, task, [e for e in course.grows_at if e <= grown])
        loaded = await checkpoint.read(self._objects, self._job.job_id, manifest.position)
        await self._compute(task.load_state, loaded.tensors, manifest.scalars["task"])

    async def _wire(self, task: Task, manifest: Manifest, *, is_new: bool) -> Wire:
        elements = sum(prod(shape) for shape in task.averaged().values())
        ranks = self._roster.world_size
        dtype = LOSSLESS if self._spec.wire_dtype == AUTO else self._spec.wire_dtype
        wire = Wire.of(dtype, elements, ranks)
        at, job_id = manifest.position, self._job.job_id
        if is_new:
            return wire  # what was owed was another model's
        await load_residuals(self._objects, job_id, at, self._rank, ranks, wire)
        return wire

    async def _report_plan(self, task: Task, course: Course) -> None:
        """Tell the client how much there is to do."""
        report = WorkerReport(
            rank=self._generation.task.rank,
            kind="plan",
            total_steps=course.schedule.training_steps,
            batches=batches_of(course.schedule, course.order),
            gradient_bytes=4 * sum(prod(shape) for shape in task.averaged().values()),
        )
        await self._generation.report(report)
