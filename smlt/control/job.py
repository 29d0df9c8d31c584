"""The durable state of a job: one object, changed only by compare-and-set."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from smlt.errors import NotFoundError, PreconditionError, StoreError
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.messages import JobSpec, JobState, Position, ResourcePlan

# A compare-and-set is tried this often before somebody else is said to be writing all the time.
_ATTEMPTS = 16


def new_job_id(name: str) -> str:
    """Return an id that says what is trained and cannot be guessed (128 bits)."""
    safe = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")[:24]
    return f"{safe or 'job'}-{secrets.token_hex(16)}"


class Job:
    """This client's hold on a job. ``state`` is what was last read or written."""

    def __init__(self, objects: ObjectStore, state: JobState, etag: str = "") -> None:
        self.state = state
        self._objects = objects
        self._etag = etag
        self._key = JobObjects(state.job_id).state

    @classmethod
    async def create(
        cls, objects: ObjectStore, job_id: str, spec: JobSpec, plan: ResourcePlan
    ) -> Job:
        """Write the state of a new job.

        Raises:
            PreconditionError: there is a job of this id.
        """
        job = cls(objects, JobState(job_id=job_id, spec=spec, plan=plan))
        job._etag = await objects.put(job._key, _packed(job.state), if_absent=True)
        return job

    @classmethod
    async def load(cls, objects: ObjectStore, job_id: str) -> Job:
        """Read a job's state.

        Raises:
            NotFoundError: there is no such job.
        """
        data, etag = await objects.get(JobObjects(job_id).state)
        return cls(objects, JobState.from_dict(json.loads(data)), etag)

    async def refresh(self) -> JobState:
        """Read the state again: another client may have asked for a stop."""
        data, self._etag = await self._objects.get(self._key)
        self.state = JobState.from_dict(json.loads(data))
        return self.state

    async def draw(self, parent: Position | None, plan: ResourcePlan) -> int:
        """Draw the next generation, which freezes its parent; return its number."""
        number = self.state.generation + 1
        await self._change(generation=number, parent=parent, plan=plan)
        return number

    async def request_stop(self) -> None:
        """Ask, durably, that the job end at its next step."""
        await self._change(stop_requested=True)

    async def end(self, status: str, ending: str, parent: Position | None) -> None:
        """Note that the job is over, and why."""
        await self._change(status=status, ending=ending, parent=parent)

    async def _change(self, **changes: Any) -> None:
        for _ in range(_ATTEMPTS):
            held = self.state
            wanted = replace(held, **changes)
            try:
                self._etag = await self._objects.put(
                    self._key, _packed(wanted), if_match=self._etag
                )
            except PreconditionError:
                current = await self.refresh()
                if current.token != held.token or current.generation != held.generation:
                    raise PreconditionError(
                        f"another client has taken over job {held.job_id}"
                    ) from None
            except NotFoundError:
                raise StoreError(f"the state of job {held.job_id} has been deleted") from None
            else:
                self.state = wanted
                return
        raise StoreError(f"the state of job {self.state.job_id} changes faster than it can be set")


def _packed(state: JobState) -> bytes:
    return json.dumps(state.to_dict(), indent=1).encode()
