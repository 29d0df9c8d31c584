"""Leave a generation: no rank goes before its own step, or a later one, is committed.

Agreed stop and abort save in the same way (protocol, Endings). Each rank writes its own part of
the state it holds. The lowest live rank that holds a step writes what the dead left of it, and any
rank puts the manifest; two writers of one object write the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from smlt.errors import CheckpointError, StoreError
from smlt.io import checkpoint
from smlt.io.checkpoint import CheckpointWriter
from smlt.io.manifest import Manifest
from smlt.io.object_store import ObjectStore
from smlt.messages.job import Position
from smlt.worker.generation import Generation, Roster

# Part of a live rank that is late is written by another after this long: twice costs only work.
_PATIENCE_S = 2.0
_POLL_S = 0.1


class Ending:
    """How one rank saves the state it holds, and knows that it may leave."""

    def __init__(
        self, generation: Generation, roster: Roster, objects: ObjectStore, parent: Manifest
    ) -> None:
        self._generation = generation
        self._roster = roster
        self._objects = objects
        self._parent = parent
        self._rank = roster.ranks.index(generation.task.rank)
        self.stands_for = {self._rank}
        """The ranks whose parts this one has written: its own, and those of the dead."""

    async def save(self, writer: CheckpointWriter, step: int, info: Mapping[str, Any]) -> Manifest:
        """Return the manifest, of this step or a later one, that is committed.

        Raises:
            StoreError: the object store failed.
            CheckpointError: nobody could complete a checkpoint within the limit for saving.
        """
        generation = self._generation
        limit_s = generation.limits.ending_s
        give_up = generation.clock() + limit_s
        # With its own time nearly over, a rank does not wait for others.
        hurried = generation.deadline - generation.limits.handover_margin_s / 2
        patient_until = min(generation.clock() + _PATIENCE_S, hurried)
        await writer.write_part(self._rank)
        with contextlib.suppress(StoreError):
            await generation.announce("standing", step)
        while generation.clock() < give_up:
            newest = await self._committed()
            if newest is not None and newest.step >= step:
                return await checkpoint.read_manifest(self._objects, generation.task.job_id, newest)
            missing = await writer.missing_parts()
            if missing and await self._is_lowest(step, patient_until):
                for part in missing:
                    await writer.write_part(part)
                self.stands_for.update(missing)
                missing = []
            if not missing:
                await writer.commit(parent=self._parent.position, info=info)
            else:
                await generation.next_news(_POLL_S)
        raise CheckpointError(f"no checkpoint of step {step} was complete within {limit_s:g} s")

    async def _committed(self) -> Position | None:
        task = self._generation.task
        return await checkpoint.newest(self._objects, task.job_id, task.generation)

    async def _is_lowest(self, step: int, patient_until: float) -> bool:
        """Whether it falls to this rank to write what others have not written of a step."""
        generation = self._generation
        if generation.clock() > patient_until:
            return True
        if generation.store_is_lost:
            return False
        below = self._roster.ranks[: self._rank]
        others = [rank for rank in self._roster.ranks if rank != generation.task.rank]
        try:
            leases = await generation.store.values([generation.keys.lease(r) for r in others])
        except StoreError:
            return False
        alive = {rank for rank, lease in zip(others, leases, strict=True) if lease is not None}
        holders = {rank for rank, at in generation.standings.items() if at == step}
        # Whoever lives may still write its own part: only the parts of the dead fall to others.
        return not alive - holders and not alive & holders & set(below)
