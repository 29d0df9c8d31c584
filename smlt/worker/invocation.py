"""One invocation: open the stores, take part in a generation as one rank, leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.collective import Collective
from smlt.aggregation.step import Membership
from smlt.errors import AbortedError, SmltError, StoreError
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.patient_objects import PatientObjects
from smlt.io.weights import save_weights
from smlt.messages import SAVING, Failure, JobState, Limits, Position, StepFlag, WorkerTask
from smlt.worker.ending import Ending
from smlt.worker.failures import failure_of
from smlt.worker.forwarding import NoticeForwarder
from smlt.worker.generation import Generation, Roster
from smlt.worker.host import Host
from smlt.worker.loading import Loaded, Loader
from smlt.worker.periodic_save import PeriodicSave, Snapshot
from smlt.worker.residuals import save_residual
from smlt.worker.trainer import Trainer
from smlt.worker.warm import Tag

logger = logging.getLogger(__name__)


class Invocation:
    """One worker's part in one generation."""

    def __init__(
        self,
        task: WorkerTask,
        objects: ObjectStore,
        host: Host,
        *,
        request_id: str,
        deadline: float,
    ) -> None:
        self._task = task
        self._objects = PatientObjects(objects, limit_s=Limits().objects_s, on_wait=self._on_wait)
        self._generation: Generation | None = None
        self._request_id = request_id
        self._deadline = deadline
        self._host = host

    async def run(self) -> dict[str, Any]:
        """Return what became of this invocation; what went wrong has been told to the client."""
        state, _ = await self._objects.get(JobObjects(self._task.job_id).state)
        job = JobState.from_dict(json.loads(state))
        if self._is_superseded(job):
            return {"status": "superseded"}
        limits = job.spec.limits
        self._objects.limit_s = limits.objects_s
        async with self._host.open_store(
            self._task.parameters, time_limit_s=limits.store_s
        ) as store:
            generation = self._generation = Generation(
                self._task,
                store,
                limits,
                request_id=self._request_id,
                log_stream=self._host.log_stream,
                deadline=self._deadline,
                on_abort=self._on_abort,
                clock=self._host.clock,
                nonce=self._host.nonce,
            )
            roster = await generation.join()
            if roster is None:
                return {"status": "not needed"}
            first = self._task.rank == roster.ranks[0]
            forwarded = NoticeForwarder(generation) if first else contextlib.nullcontext()
            async with _beside(generation):
                with forwarded:
                    result = await self._take_part(generation, roster, job)
            if generation.retired:
                await generation.outstay()
                result["retired"] = True
            return result

    def _on_abort(self, failure: Failure) -> None:
        assert self._generation is not None
        limits, watchdog = self._generation.limits, self._host.watchdog
        if failure.kind == "stop":
            watchdog.bite_within(limits.stop_s, "the limit for stopping at once")
        elif self._generation.state != SAVING:
            watchdog.bite_within(limits.save_s, "the limit for beginning to save")

    def _on_wait(self, what: str, why: str) -> None:
        if self._generation is not None:
            self._generation.waits_for = f"{what} ({why})" if why else what

    def _is_superseded(self, job: JobState) -> bool:
        newer = job.generation != self._task.generation or job.token > self._task.token
        return newer or job.status != "running"

    async def _take_part(
        self, generation: Generation, roster: Roster, job: JobState
    ) -> dict[str, Any]:
        reasons, failure, loaded, trainer = StepFlag(0), None, None, None
        async with AsyncExitStack() as at_the_end:
            try:
                loaded = await Loader(generation, roster, job, self._objects, self._host).load()
                # When the state is safe, since a record that does not come may take its time.
                at_the_end.push_async_callback(asyncio.to_thread, loaded.samples.close)
                async with self._saving(generation, roster, job, loaded) as saving:
                    trainer = self._trainer(generation, roster, job, loaded, saving)
                    await self._host.compute(loaded.samples.open)
                    reasons = await trainer.run(loaded.step)
            # A task may call sys.exit(): that is its failure, not the end of this process.
            except (Exception, SystemExit) as error:
                failure = await self._abort(generation, error, trainer)
            try:
                diverged = failure is not None and failure.kind == "diverged"
                whole = trainer is not None and trainer.is_whole and not diverged
                if loaded is not None and trainer is not None and whole:
                    await self._save(generation, roster, job, loaded, trainer, reasons)
            except SmltError as error:
                failure = await self._abort(generation, error, trainer)
            with contextlib.suppress(StoreError):
                await generation.leave(reasons)
        return {"status": "left", "failure": failure.message if failure else None}

    def _saving(
        self, generation: Generation, roster: Roster, job: JobState, loaded: Loaded
    ) -> PeriodicSave:
        rank = roster.ranks.index(self._task.rank)

        def copied_state() -> Snapshot:
            at = Position(generation=self._task.generation, step=generation.step + 1)
            writer = loaded.writer(
                self._objects, self._task.job_id, at, roster.world_size, copy=True
            )
            owed = None if loaded.wire.owed is None else loaded.wire.owed.copy()
            own = partial(self._save_owed, at, rank, owed)
            return Snapshot(writer, loaded.info(at.step), own)

        return PeriodicSave(
            self._objects,
            generation,
            rank,
            copied_state,
            loaded.parent,
            keep=job.spec.keep_checkpoints,
        )

    def _trainer(
        self,
        generation: Generation,
        roster: Roster,
        job: JobState,
        loaded: Loaded,
        saving: PeriodicSave,
    ) -> Trainer:
        members = Membership(
            store=generation.store,
            keys=generation.keys,
            rank=roster.ranks.index(self._task.rank),
            world_size=roster.world_size,
            ttl_s=generation.ttl_s,
            limit_s=generation.limits.step_s,
            clock=generation.clock,
        )

        async def keep_best() -> None:
            if members.rank == 0:
                weights = await self._host.compute(loaded.task.weights)
                await save_weights(self._objects, JobObjects(self._task.job_id).best, weights)

        return Trainer(
            loaded.task,
            job.spec,
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

    async def _abort(
        self, generation: Generation, error: BaseException, trainer: Trainer | None
    ) -> Failure:
        """Tell everybody why this rank cannot go on, unless it was told itself."""
        if isinstance(error, AbortedError) and generation.aborted is not None:
            return generation.aborted
        failure = failure_of(
            error,
            rank=self._task.rank,
            step=trainer.trained if trainer else 0,
            code_root=self._host.code_root,
        )
        logger.error("%s", failure.message, exc_info=error if failure.traceback else None)
        # A store that is lost cannot be told; every rank finds that out by itself.
        if not generation.store_is_lost:
            with contextlib.suppress(StoreError):
                return await generation.abort(failure)
        return failure

    async def _save(
        self,
        generation: Generation,
        roster: Roster,
        job: JobState,
        loaded: Loaded,
        trainer: Trainer,
        reasons: StepFlag,
    ) -> None:
        """Save the state that this rank holds, and the model if training is complete."""
        manifest = loaded.parent
        if trainer.step != loaded.step:
            if generation.aborted is None or generation.aborted.kind != "stop":
                self._host.watchdog.allow(generation.limits.ending_s, "the limit for saving")
            with contextlib.suppress(StoreError):
                await generation.say(SAVING)
            held = Position(generation=self._task.generation, step=trainer.step)
            writer = loaded.writer(self._objects, self._task.job_id, held, roster.world_size)
            wire, rank = loaded.wire, roster.ranks.index(self._task.rank)
            await self._save_owed(held, rank, wire.owed if wire.is_whole else None)
            ending = Ending(generation, roster, self._objects, loaded.parent)
            manifest = await ending.save(writer, held.step, loaded.info(held.step))
        if reasons & StepFlag.TARGET and self._task.rank == roster.ranks[0]:
            weights = await self._host.compute(loaded.task.weights)
            await save_weights(self._objects, JobObjects(self._task.job_id).model, weights)
        # A model that grew, and took no step since, is not the parent's any more.
        is_parents = manifest is loaded.parent
        if manifest.position.step == trainer.step and not (is_parents and loaded.has_grown):
            tag = Tag(self._task.job_id, job.spec.code, trainer.step, manifest.digest)
            self._host.memory.keep(tag, loaded.task)

    async def _save_owed(self, at: Position, rank: int, owed: NDArray[np.float32] | None) -> None:
        if owed is not None:
            await save_residual(self._objects, self._task.job_id, at, rank, owed)


@asynccontextmanager
async def _beside(generation: Generation) -> AsyncIterator[None]:
    """Read notices and renew the lease while the block runs."""
    tasks = [
        asyncio.create_task(generation.notices.run()),
        asyncio.create_task(generation.heartbeat()),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
