"""Checkpoints: the state in as many parts as there are ranks, and a manifest that is put last.

The tensors, in the order of their names, form one sequence of leaves (``state_digest``); part i of
n is a balanced range of it, a safetensors file of one-dimensional slices with the same bytes
whoever writes it. Each part carries the digests of its own leaves in its header. So a part is
written, complete and self-describing by one put, and the committer needs to read only headers:
a file beside each part would be a second thing to be missing, and hashing the whole state again
would take the committer n times as long as writing its part did.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt.errors import CheckpointError, NotFoundError, PreconditionError
from smlt.io.checkpoint_part import loads, nbytes_of, part_header, runs, stored_digests
from smlt.io.keys import JobObjects
from smlt.io.manifest import Manifest, PartInfo
from smlt.io.object_store import ObjectStore
from smlt.io.state_digest import StateLayout, combined_digest, leaf_digests
from smlt.io.tensor import Tensor, as_tensor
from smlt.io.together import together
from smlt.messages.job import Position

READS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state that was read and verified."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    """By sorted name; the memory is the caller's."""


class CheckpointWriter:
    """One state at one position, to be saved in ``parts`` parts by any of the ranks that hold it.

    The tensors are read while parts are written and must not change meanwhile.
    """

    def __init__(
        self,
        store: ObjectStore,
        job_id: str,
        position: Position,
        tensors: Mapping[str, Tensor | NDArray[Any]],
        scalars: Mapping[str, Any],
        *,
        parts: int,
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._position = position
        self._tensors = {name: as_tensor(array) for name, array in tensors.items()}
        self._layout = StateLayout.of(self._tensors)
        self._scalars = dict(scalars)
        self._parts = parts
        self._known: dict[int, PartInfo] = {}

    async def write_part(self, part: int) -> PartInfo:
        """Write a part; a second writer writes the same bytes."""
        leaves = self._layout.part(part, self._parts)
        digests = await asyncio.to_thread(leaf_digests, self._tensors, leaves)
        header = part_header(leaves, digests, part, self._parts)
        slices = [self._tensors[run.name].data[run.start : run.stop].data for run in runs(leaves)]
        key = self._key(part)
        await self._store.put(key, [header, *slices])
        info = PartInfo(key, len(header) + nbytes_of(leaves), digests)
        self._known[part] = info
        return info

    async def missing_parts(self) -> list[int]:
        """Return the parts that nobody has written yet."""
        first = self._key(0)
        there = {info.key async for info in self._store.list(first[: first.rindex("/") + 1])}
        return [part for part in range(self._parts) if self._key(part) not in there]

    async def commit(self, *, parent: Position | None, info: Mapping[str, Any]) -> bool:
        """Put the manifest, which makes the checkpoint count; False when another rank had.

        Raises:
            CheckpointError: a part is missing or damaged, or holds another state.
        """
        infos = await together(self._part_info(part) for part in range(self._parts))
        digests = [digest for part in infos for digest in part.leaves]
        manifest = Manifest(
            job_id=self._job_id,
            position=self._position,
            parent=parent,
            layout=self._layout,
            parts=tuple(infos),
            scalars=self._scalars,
            digest=combined_digest(self._layout, digests, self._scalars),
            info=dict(info),
        )
        key = JobObjects(self._job_id).manifest(self._position.generation, self._position.step)
        try:
            await self._store.put(key, manifest.to_json(), if_absent=True)
        except PreconditionError:
            return False
        return True

    async def _part_info(self, part: int) -> PartInfo:
        """What a part says of itself: known if it was written here, else read from its header."""
        if part in self._known:
            return self._known[part]
        key, leaves = self._key(part), self._layout.part(part, self._parts)
        digests = await stored_digests(self._store, key, leaves, part, self._parts)
        header = part_header(leaves, digests, part, self._parts)
        return PartInfo(key, len(header) + nbytes_of(leaves), digests)

    def _key(self, part: int) -> str:
        at = self._position
        return JobObjects(self._job_id).part(at.generation, at.step, part)


async def newest(store: ObjectStore, job_id: str, generation: int) -> Position | None:
    """Return the highest step of the generation that has a manifest."""
    prefix = JobObjects(job_id).generation(generation)
    steps = [position async for position in _committed(store, prefix)]
    return max(steps, key=_order, default=None)


async def before(store: ObjectStore, job_id: str, position: Position) -> Position | None:
    """Return the newest committed checkpoint that a state descends from, other than itself.

    Within its generation that is an earlier step; beyond, the generation's parent and what came
    before that. None that was superseded is among them while manifests can be read.
    """
    own = JobObjects(job_id).generation(position.generation)
    earlier = [p async for p in _committed(store, own) if p.step < position.step]
    if earlier:
        return max(earlier, key=_order)
    try:
        return (await read_manifest(store, job_id, position)).parent
    except CheckpointError:
        every = _committed(store, JobObjects(job_id).checkpoints)
        older = [p async for p in every if _order(p) < _order(position)]
        return max(older, key=_order, default=None)


async def read_manifest(store: ObjectStore, job_id: str, position: Position) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    key = JobObjects(job_id).manifest(position.generation, position.step)
    try:
        text, _ = await store.get(key)
    except NotFoundError as exc:
        raise CheckpointError(f"there is no checkpoint {key} in {store.url}") from exc
    return Manifest.from_json(text, key)


async def read(store: ObjectStore, job_id: str, position: Position) -> Checkpoint:
    """Return the state of a checkpoint, every byte of it verified.

    Raises:
        CheckpointError: the manifest or a part is missing, damaged or of another version.
    """
    manifest = await read_manifest(store, job_id, position)
    await together(_check_size(store, part) for part in manifest.parts)
    tensors = {
        spec.name: Tensor(spec.dtype, spec.shape, np.empty(spec.nbytes, np.uint8))
        for spec in manifest.layout.specs
    }
    turns = asyncio.Semaphore(READS_AT_ONCE)
    parts = range(len(manifest.parts))
    await together(load.run(store, tensors, turns) for i in parts for load in loads(manifest, i))
    return Checkpoint(manifest=manifest, tensors=tensors)


async def prune(
    store: ObjectStore, job_id: str, *, keep: int, protect: Collection[Position] = ()
) -> None:
    """Delete all checkpoints but the last ``keep`` committed ones and those to ``protect``.

    Parts that were never committed go with those older than the oldest one kept.
    """
    prefix = JobObjects(job_id).checkpoints
    committed = sorted([p async for p in _committed(store, prefix)], key=_order)
    if keep < 1 or len(committed) <= keep:
        return
    oldest = committed[-keep]
    stale = []
    async for info in store.list(prefix):
        position = _position(info.key)
        if position and _order(position) < _order(oldest) and position not in protect:
            stale.append(info.key)
    # Manifests first: a checkpoint with a manifest is whole at any moment.
    for key in sorted(stale, key=lambda key: not key.endswith("/manifest.json")):
        await store.delete(key)


async def _check_size(store: ObjectStore, part: PartInfo) -> None:
    info = await store.head(part.key)
    if info is None:
        raise CheckpointError(f"the checkpoint is incomplete: {part.key} is missing")
    if info.size != part.nbytes:
        raise CheckpointError(f"{part.key} is damaged: it has {info.size} bytes, not {part.nbytes}")


async def _committed(store: ObjectStore, prefix: str) -> AsyncIterator[Position]:
    async for info in store.list(prefix):
        position = _position(info.key)
        if position is not None and info.key.endswith("/manifest.json"):
            yield position


def _position(key: str) -> Position | None:
    """The position that a key of a checkpoint names: ``…/generation/step/file``."""
    parts = key.split("/")
    if len(parts) < 3 or not (parts[-3].isdigit() and parts[-2].isdigit()):
        return None
    return Position(generation=int(parts[-3]), step=int(parts[-2]))


def _order(position: Position) -> tuple[int, int]:
    return position.generation, position.step
