"""Checkpoints while training goes on: from a copy, in the background, all ranks at one step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smlt.errors import SmltError
from smlt.io.checkpoint import CheckpointWriter, prune
from smlt.io.manifest import Manifest
from smlt.io.object_store import ObjectStore
from smlt.worker.generation import Generation

logger = logging.getLogger(__name__)

_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of the state of one moment."""

    writer: CheckpointWriter
    info: Mapping[str, Any]
    save_own: Callable[[], Awaitable[None]]
    """Writes what is this rank's alone."""


class PeriodicSave:
    """Saves one rank's part of a state in the background; the first rank commits.

    An async context manager, which on leaving gives up what is still under way: the state that
    is saved at the ending is newer. A checkpoint that fails is a warning, not the end of a job.
    """

    def __init__(
        self,
        objects: ObjectStore,
        generation: Generation,
        rank: int,
        copied_state: Callable[[], Snapshot],
        parent: Manifest,
        *,
        keep: int,
    ) -> None:
        self._objects = objects
        self._generation = generation
        self._rank = rank
        self._copied_state = copied_state
        self._parent = parent
        self._keep = keep
        self._saving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PeriodicSave:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)

    async def begin(self) -> None:
        """Copy the state as it is now, and save the copy; waits for an earlier one to be done."""
        if self._saving is not None:
            await self._saving
        self._saving = asyncio.create_task(self._save(self._copied_state()))

    async def _save(self, state: Snapshot) -> None:
        writer = state.writer
        limit_s = self._generation.limits.save_s
        try:
            async with asyncio.timeout(limit_s):
                await state.save_own()
                await writer.write_part(self._rank)
                if self._rank == 0:
                    while await writer.missing_parts():
                        await self._generation.next_news(_POLL_S)
                    await writer.commit(parent=self._parent.position, info=state.info)
                    await prune(
                        self._objects,
                        self._generation.task.job_id,
                        keep=self._keep,
                        protect=[self._parent.position],
                    )
        except TimeoutError:
            logger.warning("a periodic checkpoint was not complete within %g s", limit_s)
        except SmltError as error:
            logger.warning("a periodic checkpoint failed: %s", error)
