"""The folder of one job in the run directory: what ``smlt status`` and ``smlt logs`` read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smlt.config.values import Source
from smlt.control.progress import Progress, Summary

MARKER = ".smlt-run-directory"
"""Lies in every run directory, so that none is ever packed as code or data."""
_OBJECTS = "objects.url"
_RELEASE = "release.json"
_WATCHED = "watched.path"
_STATUS_S = 0.5


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a job's files, and the writers of those that are rewritten."""

    path: Path

    @classmethod
    def create(cls, run_dir: Path, job_id: str, objects_url: str) -> RunFolder:
        """Make the folder of a new job, and note where its objects are."""
        folder = cls(run_dir / "jobs" / job_id)
        folder.logs.mkdir(parents=True)
        (run_dir / MARKER).touch()
        (folder.path / _OBJECTS).write_text(objects_url, encoding="utf-8")
        return folder

    @property
    def objects_url(self) -> str:
        """The object store of the job."""
        try:
            return (self.path / _OBJECTS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return (self.path.parents[1].absolute() / "objects").as_uri()

    @property
    def release(self) -> dict[str, Any] | None:
        """What the job's functions are made from; None where the cloud is this machine's."""
        try:
            found: dict[str, Any] = json.loads((self.path / _RELEASE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def write_release(self, release: dict[str, Any]) -> None:
        """Keep what the job's functions are made from, for its later clients."""
        self._replace(_RELEASE, release)

    @property
    def watched(self) -> Source | None:
        """The folder or URL whose data the job waits for; None if it waits for none."""
        try:
            return Source((self.path / _WATCHED).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def watch(self, data: str) -> None:
        """Note, for later clients of the job, in which folder or URL it waits for data."""
        (self.path / _WATCHED).write_text(data, encoding="utf-8")

    def reopen(self) -> None:
        """Make the folder ready for a job that goes on: how it ended before is no longer true."""
        self.logs.mkdir(parents=True, exist_ok=True)
        (self.path / "summary.json").unlink(missing_ok=True)

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def cloud(self) -> Path:
        return self.path / "cloud"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def best_model(self) -> Path:
        return self.path / "best.safetensors"

    def write_summary(self, summary: Summary) -> None:
        self._replace("summary.json", summary.to_dict())

    @asynccontextmanager
    async def status_of(self, progress: Progress) -> AsyncIterator[None]:
        """Keep status.json up to date while the block runs, and once more at its end."""
        writer = asyncio.create_task(self._keep_status(progress))
        try:
            yield
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            self._write_status(progress)

    async def _keep_status(self, progress: Progress) -> None:
        while True:
            self._write_status(progress)
            await asyncio.sleep(_STATUS_S)

    def _write_status(self, progress: Progress) -> None:
        status = {**progress.to_dict(), "updated": time.time(), "client_pid": os.getpid()}
        self._replace("status.json", status)

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        """Write a file that readers find whole, old or new."""
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
        fresh.replace(self.path / name)
