"""The states that a job has left in its checkpoints, as its client speaks of them."""

from __future__ import annotations

from smlt.control.job import Job
from smlt.errors import CheckpointError
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.manifest import Manifest
from smlt.io.object_store import ObjectStore
from smlt.messages.job import Position


class KeptStates:
    """Finds states, and names them to the user."""

    def __init__(self, job: Job, objects: ObjectStore) -> None:
        self._job = job
        self._objects = objects

    async def newest(self) -> Position | None:
        """Return the newest state of the generation that runs now, or ran last."""
        state = self._job.state
        return await checkpoint.newest(self._objects, state.job_id, state.generation)

    async def before(self, parent: Position | None) -> Position | None:
        """Return the state before one that cannot be read, if any is kept.

        What was trained since is trained again, to the same bits.
        """
        if parent is None:
            return None
        return await checkpoint.before(self._objects, self._job.state.job_id, parent)

    async def prune(self, parent: Position | None) -> None:
        """Delete all but the newest: generations may be too short to do so as they go."""
        state = self._job.state
        await checkpoint.prune(
            self._objects,
            state.job_id,
            keep=state.spec.keep_checkpoints,
            protect=() if parent is None else (parent,),
        )

    def where(self, position: Position | None) -> str:
        """Say where a checkpoint is: its folder, or its URL."""
        if position is None:
            return ""
        key = JobObjects(self._job.state.job_id).manifest(position.generation, position.step)
        manifest = self._objects.local_path(key)
        return f"{self._objects.url}/{key}" if manifest is None else str(manifest.parent)

    async def trained(self, position: Position | None) -> int | None:
        """Return the steps done there, as a user counts them; None where that cannot be read.

        Evaluations are numbered steps too, but not counted.
        """
        if position is None:
            return 0
        manifest = await self._manifest(position)
        return None if manifest is None else int(manifest.info.get("trained", 0))

    async def has_reached_target(self, position: Position | None) -> bool:
        """Whether the job's ``--until`` or ``--patience`` has ended it there."""
        manifest = None if position is None else await self._manifest(position)
        return manifest is not None and bool(manifest.scalars["target"]["reached"])

    async def _manifest(self, position: Position) -> Manifest | None:
        """Return what a checkpoint says of itself; nothing where that cannot be read."""
        try:
            return await checkpoint.read_manifest(self._objects, self._job.state.job_id, position)
        except CheckpointError:
            return None

    async def in_words(self, position: Position | None) -> str:
        if position is None:
            return "the beginning"
        step = await self.trained(position)
        return "a checkpoint that cannot be read" if step is None else f"step {step}"
