"""Go on with a job that another client began: take it over live, or resume it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from smlt.aws.release import Release
from smlt.config.resume import ResumeConfig
from smlt.control.job import Job, this_client
from smlt.control.kept_states import KeptStates
from smlt.control.progress import Summary
from smlt.control.run_folder import RunFolder
from smlt.control.summary import summarise
from smlt.control.task_scheduler import Outcome
from smlt.embedded.running_cloud import RunningCloud
from smlt.errors import NotFoundError, UserError
from smlt.io import checkpoint
from smlt.io.keys import JobObjects, package_key
from smlt.io.object_store import ObjectStore
from smlt.io.stores import open_object_store
from smlt.lead import Lead, disk_errors
from smlt.messages.job import JobSpec, JobState, Limits
from smlt.place import LINGER_S, Place, aws_place, check_server, left_place, reaches

# Limits so long are a debugger's; functions do not have them.
_DEBUGGER_S = 1e8


class Continuation(Lead):
    """One job from where it stands to its summary. It ends the generation that still runs."""

    def __init__(
        self,
        run_dir: Path,
        job_id: str,
        *,
        changes: ResumeConfig | None = None,
        parameters: str | None = None,
    ) -> None:
        """Name the job; without ``changes`` only one that has not ended is gone on with."""
        super().__init__()
        self._run_dir = run_dir.resolve()
        self._changes = changes
        self._parameters = parameters
        self.progress.job_id = job_id

    async def train(self) -> Summary:
        """Lead the job to its end.

        Raises:
            UserError: there is no such job, or nothing to go on with.
            JobHeldError: its client lives; the text says who it is.
            SmltError: a store or the cloud failed in a way that no new generation mends.
        """
        self._running = asyncio.current_task()
        folder = RunFolder(self._run_dir / "jobs" / self.progress.job_id)
        async with open_object_store(folder.objects_url) as store:
            objects = self._patient(store)
            job = await self._job(objects)
            wanted = self._wanted(job.state)
            if await self._ends_anew(job, objects):
                wanted["spec"] = replace(wanted["spec"], until=None, patience=None)
            if self._parameters is not None and folder.release is None:
                await check_server(self._parameters)
            with disk_errors(self._run_dir):
                await job.take_over(this_client(), **wanted)
                return await self._go_on(job, objects, folder, anew=bool(wanted))

    async def _go_on(
        self, job: Job, objects: ObjectStore, folder: RunFolder, *, anew: bool
    ) -> Summary:
        state = job.state
        if anew or not state.stop_requested:
            # A job that goes on is not complete, whatever it was, and a client that began to go
            # on with it may have died here: a model that is current is written again.
            await objects.delete(JobObjects(state.job_id).model)
        folder.reopen()
        self._recall(folder, state)
        if state.stop_requested and await self._cloud_is_gone(folder):
            return await self._end(job, objects, folder)
        package = b""
        if folder.release is None:
            package, _ = await objects.get(package_key(state.spec.code))
        async with await self._place(folder, state.spec, package) as place:
            return await self._lead(job, objects, place, folder)

    async def _place(
        self, folder: RunFolder, spec: JobSpec, package: bytes
    ) -> AbstractAsyncContextManager[Place]:
        """Return to the cloud that the job has run in."""
        if folder.release is None:
            return left_place(self._run_dir, folder, spec, package, self._parameters)
        release = Release.from_dict(folder.release)
        parameters = self._parameters or release.parameters
        return aws_place(release, spec, parameters, is_near=await reaches(parameters))

    async def _job(self, objects: ObjectStore) -> Job:
        job_id = self.progress.job_id
        try:
            job = await Job.load(objects, job_id)
        except NotFoundError:
            raise UserError(f"There is no job {job_id!r} in {self._run_dir}.") from None
        if job.state.status == "removed":
            raise UserError(f"Job {job_id} is being removed.")
        return job

    def _wanted(self, state: JobState) -> dict[str, Any]:
        """Return what of the job's state changes with its client."""
        changes, job_id = self._changes, state.job_id
        if changes is None:
            if state.status != "running":
                raise UserError(
                    f"Job {job_id} has ended ({state.status}): `smlt resume {job_id}` goes on "
                    "with it from its newest checkpoint."
                )
            return {}
        if state.status == "completed" and not (changes.is_longer or state.spec.watches):
            raise UserError(
                f"Job {job_id} is complete: give --epochs or --steps to train it further."
            )
        spec = changes.spec(state.spec)
        if spec.limits.lease_s > _DEBUGGER_S:
            spec = replace(spec, limits=Limits())
        return {
            "spec": spec,
            "plan": changes.plan(state.plan, spec),
            "status": "running",
            "stop_requested": False,
            "stop_now": False,
            "ending": "",
        }

    async def _ends_anew(self, job: Job, objects: ObjectStore) -> bool:
        """Whether the end that the job is given takes the place of a target that it has reached.

        Raises:
            UserError: there is nothing to do until that end, for which no workers are started.
        """
        changes, state = self._changes, job.state
        if changes is None or state.status != "completed" or not changes.is_longer:
            return False
        kept = KeptStates(job, objects)
        trained = await kept.trained(state.parent)
        if not changes.is_further(state.spec, trained):
            end = f"--steps {changes.steps}" if changes.steps else f"--epochs {changes.epochs}"
            raise UserError(
                f"Job {state.job_id} is complete at step {trained}: {end} is no further."
            )
        return await kept.has_reached_target(state.parent)

    def _recall(self, folder: RunFolder, state: JobState) -> None:
        """Count time and cost on from what the earlier client has written down."""
        progress = self.progress
        progress.epochs = state.spec.epochs
        progress.size = state.plan
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(folder.status.read_text(encoding="utf-8"))
            progress.step, progress.epoch = int(before["step"]), int(before["epoch"])
            progress.elapsed_s = float(before["elapsed_s"])
            progress.billed_gb_s = float(before["billed_gb_s"])
            progress.cost_usd = float(before["cost_usd"])

    async def _cloud_is_gone(self, folder: RunFolder) -> bool:
        if folder.release is not None:
            return False
        return await RunningCloud.find(folder.cloud, hold_s=LINGER_S) is None

    async def _end(self, job: Job, objects: ObjectStore, folder: RunFolder) -> Summary:
        """End, as it was asked to, a job of which nothing runs any more."""
        state = job.state
        newest = await checkpoint.newest(objects, state.job_id, state.generation)
        outcome = Outcome(
            "stopped", "stopped on request", newest or state.parent, None, state.generation
        )
        await job.end(outcome.status, outcome.message, outcome.newest)
        self.progress.state = outcome.status
        async with folder.status_of(self.progress):
            summary = await summarise(self.progress, outcome, objects, folder)
        folder.write_summary(summary)
        return summary
