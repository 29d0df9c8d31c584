"""Data that arrives in bursts: notice that a folder holds more, and that all of it has come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

from smlt.control.artifact_manager import upload_data
from smlt.control.job import Job
from smlt.control.progress_feed import ProgressFeed
from smlt.control.source_files import all_files
from smlt.errors import ConfigError, StoreError
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.messages.job import JobSpec, Origin, Position

POLL_S = 0.5
REMOTE_POLL_S = 5.0  # of a bucket, where each look is billed
SETTLE_S = 1.5  # without a change, until a burst is taken to be complete

Files = dict[str, tuple[int, int]]
"""Size and time of change in nanoseconds, by path."""


def with_more_data(spec: JobSpec, data: str, step: int, trained: int) -> JobSpec:
    """Return what a job is to do that has done all of ``spec``: as many epochs on other data.

    Args:
        spec: what it has done.
        data: key of the manifest.
        step: numbered steps that were taken.
        trained: how many of them were training steps.
    """
    done = spec.epochs or 0
    return replace(
        spec,
        data=data,
        origin=Origin(step=step, epoch=done, trained=trained),
        epochs=2 * done - spec.origin.epoch,
    )


class Bursts:
    """Gives a job more to do when it has done all: the epochs that it had, on other data."""

    def __init__(
        self,
        job: Job,
        objects: ObjectStore,
        feed: ProgressFeed,
        more_data: Callable[[], Awaitable[str]],
    ) -> None:
        """Ask ``more_data`` for the key of the next manifest, for which it waits."""
        self._job = job
        self._objects = objects
        self._feed = feed
        self._more_data = more_data

    async def more(self, newest: Position, stopping: asyncio.Event) -> bool:
        """Wait, with no function running, until there is more data; False if it is to end."""
        self._feed.wait()
        waiting = asyncio.ensure_future(self._more_data())
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.is_set():
                return False
            key = waiting.result()
        finally:
            waiting.cancel()
            stopped.cancel()
            await asyncio.gather(waiting, stopped, return_exceptions=True)
        state = self._job.state
        manifest = await checkpoint.read_manifest(self._objects, state.job_id, newest)
        # Before the job is given more to do: as long as there is a model, it is complete.
        await self._objects.delete(JobObjects(state.job_id).model)
        spec = with_more_data(state.spec, key, newest.step, manifest.info["trained"])
        await self._job.go_on(spec)
        self._feed.progress.epochs = spec.epochs
        self._feed.event("burst", data=key, epochs=spec.epochs)
        return True


class WatchedFolder:
    """A folder of data. Files that are still written to are waited for."""

    def __init__(
        self,
        source: Path,
        objects: ObjectStore,
        known: str | None,
        *,
        refresh: Callable[[], Awaitable[object]] | None = None,
        poll_s: float = POLL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Watch a folder of which the manifest under the key ``known`` is in the store.

        ``refresh`` is awaited before each look, where the folder is a copy of something else.
        """
        self._refresh = refresh
        self._poll_s = poll_s
        self._source = source
        self._objects = objects
        self._known = known
        self._sleep = sleep
        self._seen: Files = {}

    async def more(self) -> str:
        """Wait until the folder holds other data than before; return the key of its manifest.

        The manifest also names what has come or changed since the one before.
        """
        while True:
            files = await self._at_rest()
            if files != self._seen:
                self._seen = files
                key = await self._upload()
                if key is not None:
                    self._known = key
                    return key
            await self._sleep(self._poll_s)

    async def _at_rest(self) -> Files:
        """Return what is in the folder, when nothing of it changes any more."""
        files, rests_s = await self._look(), 0.0
        while files != self._seen and rests_s < SETTLE_S:
            await self._sleep(self._poll_s)
            now = await self._look()
            rests_s = rests_s + self._poll_s if now == files else 0.0
            files = now
        return files

    async def _look(self) -> Files:
        if self._refresh is not None:
            # A bucket that is out, or empty, tells nothing new: the next look may.
            with contextlib.suppress(StoreError, ConfigError):
                await self._refresh()
        return await asyncio.to_thread(lambda: dict(self._entries()))

    def _entries(self) -> Iterator[tuple[str, tuple[int, int]]]:
        try:
            for path in all_files(self._source):
                stat = path.stat()
                yield str(path), (stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            return  # something was removed meanwhile: the next look tells

    async def _upload(self) -> str | None:
        """Store the data; None if it is what was there before, or nothing."""
        before = await self._names(self._known)
        try:
            key = await upload_data(self._objects, self._source, before=before)
        except (ConfigError, FileNotFoundError):
            return None
        return None if await self._names(key) == before else key

    async def _names(self, key: str | None) -> dict[str, str]:
        """The digests of a manifest's files, by name."""
        if key is None:
            return {}
        text, _ = await self._objects.get(key)
        return {name: entry["sha256"] for name, entry in json.loads(text)["files"].items()}
