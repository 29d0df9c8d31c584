"""The durable state of a job: one object, changed only by compare-and-set.

It carries the lease of the client that leads the job, with a fencing token. A client may take over
after it has seen the lease unchanged for the lease's time by its own monotonic clock: no two
machines' clocks are ever compared. Taking over raises the token, and whoever still holds a lower
one can change nothing any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from smlt.errors import JobHeldError, NotFoundError, PreconditionError, StoreError
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.messages.job import ClientHold, JobSpec, JobState, Position, ResourcePlan

# A compare-and-set is tried this often before somebody else is said to be writing all the time.
_ATTEMPTS = 16
_LOOK_S = 0.5

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


def new_job_id(name: str) -> str:
    """Return an id that says what is trained and cannot be guessed (128 bits)."""
    safe = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")[:24]
    return f"{safe or 'job'}-{secrets.token_hex(16)}"


def this_client() -> ClientHold:
    """Return this process's lease."""
    return ClientHold(host=socket.gethostname(), pid=os.getpid(), since=time.time())


class Job:
    """This client's hold on a job. ``state`` is what was last read or written."""

    def __init__(self, objects: ObjectStore, state: JobState, etag: str = "") -> None:
        self.state = state
        self._objects = objects
        self._etag = etag
        self._key = JobObjects(state.job_id).state
        self._turn = asyncio.Lock()
        self._lost: JobHeldError | None = None

    @classmethod
    async def create(
        cls,
        objects: ObjectStore,
        job_id: str,
        spec: JobSpec,
        plan: ResourcePlan,
        client: ClientHold | None = None,
    ) -> Job:
        """Write the state of a new job.

        Raises:
            PreconditionError: there is a job of this id.
        """
        job = cls(objects, JobState(job_id=job_id, spec=spec, plan=plan, client=client))
        job._etag = await objects.put(job._key, _packed(job.state), if_absent=True)
        return job

    @classmethod
    async def load(cls, objects: ObjectStore, job_id: str) -> Job:
        """Read a job's state.

        Raises:
            NotFoundError: there is no such job.
            StoreError: its state is damaged.
        """
        key = JobObjects(job_id).state
        data, etag = await objects.get(key)
        return cls(objects, _unpacked(data, f"{objects.url}/{key}"), etag)

    async def refresh(self) -> JobState:
        """Read the state again: another client may have asked for a stop."""
        data, self._etag = await self._objects.get(self._key)
        self.state = _unpacked(data, f"{self._objects.url}/{self._key}")
        return self.state

    async def renew(self) -> None:
        """Show that this client lives, and learn what others have asked for.

        Raises:
            JobHeldError: another client has taken over.
        """
        hold = self.state.client or this_client()
        await self._change(client=replace(hold, beat=hold.beat + 1))

    async def take_over(
        self,
        client: ClientHold,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        **changes: Any,
    ) -> None:
        """Become the client that leads the job, once nobody does; ``changes`` are made with it.

        Raises:
            JobHeldError: its client lives.
        """
        seen = self.state
        since = clock()
        while True:
            if seen.client is None or clock() - since > seen.spec.limits.hold_s:
                wanted = replace(self.state, token=seen.token + 1, client=client, **changes)
                try:
                    packed = _packed(wanted)
                    self._etag = await self._objects.put(self._key, packed, if_match=self._etag)
                except PreconditionError:
                    pass  # somebody has changed something: look again who
                else:
                    self.state = wanted
                    return
            else:
                await sleep(_LOOK_S)
            asked = clock()
            await self.refresh()
            # While the store did not answer, its client could not have shown that it lives.
            since += clock() - asked
            if (self.state.client, self.state.token) != (seen.client, seen.token):
                raise self._held()

    async def draw(self, parent: Position | None, plan: ResourcePlan) -> int:
        """Draw the next generation, which freezes its parent; return its number."""
        number = self.state.generation + 1
        await self._change(generation=number, parent=parent, plan=plan)
        return number

    async def go_on(self, spec: JobSpec) -> None:
        """Give a job that has done all there was to do more of it."""
        await self._change(spec=spec)

    async def request_stop(self, *, now: bool = False) -> None:
        """Ask, durably, that the job end at its next step, or at once."""
        # Whoever leads the job, and whatever generation it is in.
        wanted = {"stop_requested": True, "stop_now": now or self.state.stop_now}
        async with self._turn:
            await self._compare_and_set(wanted, fenced=False)

    async def end(self, status: str, ending: str, parent: Position | None) -> None:
        """Note that the job is over, and why; nobody leads it any more."""
        await self._change(status=status, ending=ending, parent=parent, client=None)

    async def remove(self) -> None:
        """Take an ended job out of everybody's reach, before its objects are deleted.

        Raises:
            PreconditionError: it has changed since it was read.
        """
        wanted = replace(self.state, status="removed")
        self._etag = await self._objects.put(self._key, _packed(wanted), if_match=self._etag)
        self.state = wanted

    async def _change(self, **changes: Any) -> None:
        # One at a time: the lease is renewed while generations are drawn.
        async with self._turn:
            await self._compare_and_set(changes)

    async def _compare_and_set(self, changes: dict[str, Any], *, fenced: bool = True) -> None:
        if fenced and self._lost is not None:
            raise self._lost
        for _ in range(_ATTEMPTS):
            held = self.state
            wanted = replace(held, **changes)
            try:
                self._etag = await self._objects.put(
                    self._key, _packed(wanted), if_match=self._etag
                )
            except PreconditionError:
                current = await self.refresh()
                ours = (current.token, current.generation) == (held.token, held.generation)
                if fenced and not ours:
                    # For good: what was read just now is another client's to change.
                    self._lost = self._held()
                    raise self._lost from None
            except NotFoundError:
                raise StoreError(f"the state of job {held.job_id} has been deleted") from None
            else:
                self.state = wanted
                return
        raise StoreError(f"the state of job {self.state.job_id} changes faster than it can be set")

    def _held(self) -> JobHeldError:
        """Say who leads the job."""
        job_id, client = self.state.job_id, self.state.client
        if client is None:
            return JobHeldError(f"another client has ended job {job_id} meanwhile")
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(client.since))
        return JobHeldError(
            f"another client leads job {job_id}: process {client.pid} on {client.host}, "
            f"since {since}; end the job with `smlt stop {job_id}`, or wait until that client ends"
        )


def _packed(state: JobState) -> bytes:
    return json.dumps(state.to_dict(), indent=1).encode()


def _unpacked(data: bytes, where: str) -> JobState:
    try:
        return JobState.from_dict(json.loads(data))
    except (ValueError, TypeError, AttributeError) as exc:
        raise StoreError(f"the state of the job, {where}, is damaged: {exc}") from exc
