"""One rank at work: load, train, save, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.collective import Collective
from smlt.aggregation.transfer import Membership, Offload
from smlt.errors import AbortedError, SmltError, StoreError
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.weights import replace_weights, save_weights
from smlt.messages.job import JobState, Position
from smlt.messages.worker import SAVING, Failure, StepFlag
from smlt.worker.ending import Ending
from smlt.worker.failures import failure_of
from smlt.worker.generation import Generation, Roster
from smlt.worker.host import Host
from smlt.worker.loading import Loaded, Loader
from smlt.worker.periodic_save import PeriodicSave, Snapshot
from smlt.worker.residuals import save_residual
from smlt.worker.trainer import Trainer
from smlt.worker.warm import Tag

logger = logging.getLogger(__name__)


class Rank:
    """A member of a generation, from its roster to its leaving."""

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
        self._objects = objects
        self._host = host
        self._task = generation.task
        self._rank = roster.ranks.index(generation.task.rank)
        """Its place in the roster: ranks are counted anew where one has not come."""
        self._loaded: Loaded | None = None
        self._trainer: Trainer | None = None
        self._failure: Failure | None = None

    async def take_part(self) -> dict[str, Any]:
        """Return what became of it; what went wrong has been told to the client."""
        reasons = StepFlag(0)
        async with AsyncExitStack() as at_the_end:
            try:
                reasons = await self._train(at_the_end)
            # A task may call sys.exit(): that is its failure, not the end of this process.
            except (Exception, SystemExit) as error:
                self._failure = await self._abort(error)
            try:
                await self._save(reasons)
            except SmltError as error:
                self._failure = await self._abort(error)
            with contextlib.suppress(StoreError):
                await self._generation.leave(reasons)
        return {"status": "left", "failure": self._failure.message if self._failure else None}

    async def _train(self, at_the_end: AsyncExitStack) -> StepFlag:
        """Load, and take steps until all ranks agree to stop; return why."""
        generation = self._generation
        loader = Loader(generation, self._roster, self._job, self._objects, self._host)
        loaded = self._loaded = await loader.load()
        # When the state is safe, since a record that does not come may take its time.
        at_the_end.push_async_callback(asyncio.to_thread, loaded.samples.close)
        threads = self._host.threads()
        at_the_end.callback(threads.close)
        async with self._saving(loaded) as saving:
            trainer = self._trainer = self._trainer_of(loaded, saving, threads.run)
            await self._host.compute(loaded.samples.open)
            return await trainer.run(loaded.step)

    def _saving(self, loaded: Loaded) -> PeriodicSave:
        def copied_state() -> Snapshot:
            at = Position(generation=self._task.generation, step=self._generation.step + 1)
            writer = loaded.writer(
                self._objects, self._task.job_id, at, self._roster.world_size, copy=True
            )
            owed = None if loaded.wire.owed is None else loaded.wire.owed.copy()
            return Snapshot(writer, loaded.info(at.step), partial(self._save_owed, at, owed))

        return PeriodicSave(
            self._objects,
            self._generation,
            self._rank,
            copied_state,
            loaded.parent,
            keep=self._job.spec.keep_checkpoints,
        )

    def _trainer_of(self, loaded: Loaded, saving: PeriodicSave, offload: Offload) -> Trainer:
        generation = self._generation
        members = Membership(
            store=generation.store,
            keys=generation.keys,
            rank=self._rank,
            world_size=self._roster.world_size,
            ttl_s=generation.ttl_s,
            limit_s=generation.limits.step_s,
            offload=offload,
            clock=generation.clock,
        )

        async def keep_best() -> bool:
            """Keep them if it is this rank's turn: whether it has."""
            if self._rank == 0:
                await self._save_best(loaded)
            return self._rank == 0

        return Trainer(
            loaded.task,
            self._job.spec,
            generation,
            Collective(members, generation.notices),
            loaded.wire,
            loaded.samples,
            loaded.schedule,
            loaded.target,
            self._host.compute,
            save=saving.begin,
            keep_best=keep_best,
        )

    async def _abort(self, error: BaseException) -> Failure:
        """Tell everybody why this rank cannot go on, unless it was told itself."""
        generation = self._generation
        if isinstance(error, AbortedError) and generation.aborted is not None:
            return generation.aborted
        failure = failure_of(
            error,
            rank=self._task.rank,
            step=self._trainer.trained if self._trainer else 0,
            code_root=self._host.code_root,
        )
        logger.error("%s", failure.message, exc_info=error if failure.traceback else None)
        if failure.kind == "host":
            # Another machine may do: this one is not to be met again by the next generation.
            with contextlib.suppress(StoreError):
                await generation.retire()
        # A store that is lost cannot be told; every rank finds that out by itself.
        if not generation.store_is_lost:
            with contextlib.suppress(StoreError):
                return await generation.abort(failure)
        return failure

    async def _save(self, reasons: StepFlag) -> None:
        """Save the state that this rank holds, if it is whole, and the model if it is complete."""
        loaded, trainer = self._loaded, self._trainer
        diverged = self._failure is not None and self._failure.kind == "diverged"
        if loaded is None or trainer is None or not trainer.is_whole or diverged:
            return
        manifest, saved_for = loaded.parent, {self._rank}
        if trainer.step != loaded.step:
            if self._generation.aborted is None or self._generation.aborted.kind != "stop":
                limit_s = self._generation.limits.ending_s
                self._host.watchdog.allow(limit_s, "the limit for saving")
            with contextlib.suppress(StoreError):
                await self._generation.say(SAVING)
            held = Position(generation=self._task.generation, step=trainer.step)
            world_size = self._roster.world_size
            writer = loaded.writer(self._objects, self._task.job_id, held, world_size)
            await self._save_owed(held, loaded.wire.owed if loaded.wire.is_whole else None)
            ending = Ending(self._generation, self._roster, self._objects, loaded.parent)
            manifest = await ending.save(writer, held.step, loaded.info(held.step))
            saved_for = ending.stands_for
        # Who has saved for the first rank, which died, is the one to save the model as well, and
        # the best weights, if it died while it kept them.
        if trainer.owes_best and 0 in saved_for:
            await self._save_best(loaded)
        if reasons & StepFlag.TARGET and 0 in saved_for:
            weights = await self._host.compute(loaded.task.weights)
            await save_weights(self._objects, JobObjects(self._task.job_id).model, weights)
        # A model that grew, and took no step since, is not the parent's any more.
        is_parents = manifest is loaded.parent
        if manifest.position.step == trainer.step and not (is_parents and loaded.has_grown):
            tag = Tag.of(self._task.job_id, self._job.spec, trainer.step, manifest.digest)
            self._host.memory.keep(tag, loaded.task)

    async def _save_best(self, loaded: Loaded) -> None:
        key, generation = JobObjects(self._task.job_id).best, self._task.generation
        weights = await self._host.compute(loaded.task.weights)
        await replace_weights(self._objects, key, weights, generation=generation)

    async def _save_owed(self, at: Position, owed: NDArray[np.float32] | None) -> None:
        if owed is not None:
            await save_residual(self._objects, self._task.job_id, at, self._rank, owed)
