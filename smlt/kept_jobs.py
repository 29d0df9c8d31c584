"""The jobs of a run directory from outside: what they keep, asking for a stop, removing them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from smlt.control.job import Job
from smlt.control.run_folder import RunFolder
from smlt.errors import NotFoundError, PreconditionError, UserError
from smlt.io.keys import job_objects
from smlt.io.object_store import ObjectStore
from smlt.io.stores import open_object_store
from smlt.messages.job import JobState

_POLL_S = 0.2


class KeptJobs:
    """Jobs as their durable state has them."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir.resolve()

    async def size(self, job_id: str) -> int:
        """Return the bytes of a job's own objects; code and data are shared between jobs."""
        async with self._objects(job_id) as objects:
            return sum([info.size async for info in objects.list(job_objects(job_id))])

    async def ask_to_stop(self, job_id: str, *, now: bool) -> bool:
        """Ask for an end after the step, or at once; whether the job has still to end.

        Raises:
            UserError: there is no such job.
        """
        async with self._objects(job_id) as objects:
            job = await self._load(objects, job_id)
            if job.state.status != "running":
                return False
            await job.request_stop(now=now)
            return True

    async def until_ended(self, job_id: str) -> JobState | None:
        """Wait while the job's client lives; return how the job ended, None if nobody ends it."""
        async with self._objects(job_id) as objects:
            return await _until_ended(await self._load(objects, job_id))

    async def remove(self, job_id: str) -> None:
        """Remove an ended job: its objects, its logs, its models.

        Raises:
            UserError: it has not ended, or is being resumed.
        """
        async with self._objects(job_id) as objects:
            await _remove_objects(objects, job_id)
        folder = self._run_dir / "jobs" / job_id
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _objects(self, job_id: str) -> ObjectStore:
        return open_object_store(RunFolder(self._run_dir / "jobs" / job_id).objects_url)

    async def _load(self, objects: ObjectStore, job_id: str) -> Job:
        try:
            return await Job.load(objects, job_id)
        except NotFoundError:
            raise UserError(f"There is no job {job_id!r} in {self._run_dir}.") from None


async def _until_ended(job: Job) -> JobState | None:
    loop = asyncio.get_running_loop()
    seen, since = job.state.client, loop.time()
    while True:
        state = await job.refresh()
        if state.status != "running":
            return state
        if state.client != seen:
            seen, since = state.client, loop.time()
        elif state.client is None or loop.time() - since > state.spec.limits.hold_s:
            return None
        await asyncio.sleep(_POLL_S)


async def _remove_objects(objects: ObjectStore, job_id: str) -> None:
    try:
        job = await Job.load(objects, job_id)
    except NotFoundError:
        pass  # its folder is all that is left of it
    else:
        if job.state.status == "running":
            raise UserError(f"Job {job_id} has not ended: end it first, `smlt stop {job_id}`.")
        try:
            # From here on nobody can resume it.
            await job.remove()
        except PreconditionError:
            raise UserError(f"Job {job_id} has just been resumed.") from None
    found = [info.key async for info in objects.list(job_objects(job_id))]
    # The state last: what is left of a removal that was cut short is found and removed.
    for key in sorted(found, key=lambda key: key.endswith("/job.json")):
        await objects.delete(key)
