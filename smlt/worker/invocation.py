"""One invocation: open the stores, take part in a generation as one rank, leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.patient_objects import PatientObjects
from smlt.messages.job import JobState, Limits
from smlt.messages.worker import SAVING, Failure, WorkerTask
from smlt.worker.forwarding import NoticeForwarder
from smlt.worker.generation import Generation
from smlt.worker.host import Host
from smlt.worker.rank import Rank


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
        job = JobState.from_dict(json.loads(state)).planned()
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
            rank = Rank(generation, roster, job, self._objects, self._host)
            async with _beside(generation):
                with forwarded:
                    result = await rank.take_part()
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
