"""One part of a checkpoint: a safetensors file of slices that carries its leaves' digests."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smlt.errors import CheckpointError, NotFoundError
from smlt.io import safetensors_file
from smlt.io.manifest import Manifest
from smlt.io.object_store import ObjectStore
from smlt.io.state_digest import Leaf
from smlt.io.tensor import ITEM_SIZES, Tensor

PART_FORMAT = "smlt-checkpoint-part-1"
LEAVES_PER_READ = 8
_BLANK_DIGEST = "0" * hashlib.sha256().digest_size * 2


@dataclass(frozen=True, slots=True)
class Run:
    """Leaves of one tensor that follow each other, as one slice."""

    name: str
    dtype: str
    start: int
    stop: int


def runs(leaves: Sequence[Leaf]) -> list[Run]:
    """Return the slices that a part consists of, in their order."""
    found = []
    for spec, group in itertools.groupby(leaves, key=lambda leaf: leaf.spec):
        pieces = list(group)
        found.append(Run(spec.name, spec.dtype, pieces[0].start, pieces[-1].stop))
    return found


def part_header(leaves: Sequence[Leaf], digests: Sequence[str], part: int, parts: int) -> bytes:
    """Return how the file of a part begins: a function of the layout and the digests alone."""
    slices = runs(leaves)
    sizes = [ITEM_SIZES[run.dtype] for run in slices]
    table = [
        (run.name, run.dtype, ((run.stop - run.start) // size,))
        for run, size in zip(slices, sizes, strict=True)
    ]
    first = {run.name: run.start // size for run, size in zip(slices, sizes, strict=True)}
    metadata = {
        "format": PART_FORMAT,
        "part": f"{part}/{parts}",
        "first_elements": json.dumps(first, separators=(",", ":"), sort_keys=True),
        "leaves": " ".join(digests),
    }
    return safetensors_file.header(table, metadata)


@dataclass(frozen=True, slots=True)
class Load:
    """A stretch of a part to be read and verified, and where it goes."""

    key: str
    start: int
    leaves: Sequence[Leaf]
    digests: Sequence[str]
    header: bytes

    async def run(
        self, store: ObjectStore, tensors: Mapping[str, Tensor], turns: asyncio.Semaphore
    ) -> None:
        """Read, verify and copy into the tensors.

        Raises:
            CheckpointError: the part is missing or damaged.
        """
        async with turns:
            length = len(self.header) + nbytes_of(self.leaves)
            data = await read_range(store, self.key, self.start, length)
            await asyncio.to_thread(self._place, memoryview(data), tensors)

    def _place(self, data: memoryview, tensors: Mapping[str, Tensor]) -> None:
        if data[: len(self.header)] != self.header:
            raise CheckpointError(f"{self.key} is damaged: its header is not what it was")
        at = len(self.header)
        for leaf, digest in zip(self.leaves, self.digests, strict=True):
            piece = data[at : at + leaf.stop - leaf.start]
            at += leaf.stop - leaf.start
            if hashlib.sha256(piece).hexdigest() != digest:
                raise CheckpointError(f"{self.key} is damaged: {leaf.spec.name} is not what it was")
            tensors[leaf.spec.name].data[leaf.start : leaf.stop] = np.frombuffer(piece, np.uint8)


def loads(manifest: Manifest, part: int) -> list[Load]:
    """Return what to read for a part: its header, then a few leaves at a time."""
    info = manifest.parts[part]
    leaves = manifest.layout.part(part, len(manifest.parts))
    header = part_header(leaves, info.leaves, part, len(manifest.parts))
    found = [Load(info.key, 0, (), (), header)]
    at = len(header)
    for i in range(0, len(leaves), LEAVES_PER_READ):
        group = leaves[i : i + LEAVES_PER_READ]
        found.append(Load(info.key, at, group, info.leaves[i : i + LEAVES_PER_READ], b""))
        at += nbytes_of(group)
    return found


async def read_range(store: ObjectStore, key: str, start: int, length: int) -> bytes:
    try:
        data = await store.get_range(key, start, length)
    except NotFoundError as exc:
        raise CheckpointError(f"the checkpoint is incomplete: {key} is missing") from exc
    if len(data) != length:
        raise CheckpointError(f"{key} is damaged: it ends early, at byte {start + len(data)}")
    return data


async def stored_digests(
    store: ObjectStore, key: str, leaves: Sequence[Leaf], part: int, parts: int
) -> tuple[str, ...]:
    """Return the digests that a stored part carries, having read only its header.

    Raises:
        CheckpointError: the part is missing, or its header is not that of these leaves.
    """
    length = len(part_header(leaves, [_BLANK_DIGEST] * len(leaves), part, parts))
    header = await read_range(store, key, 0, length)
    try:
        metadata = json.loads(header[safetensors_file.LENGTH_BYTES :])["__metadata__"]
        digests = tuple(metadata["leaves"].split())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{key} is damaged, or holds another state: {exc}") from exc
    if part_header(leaves, digests, part, parts) != header:
        raise CheckpointError(f"{key} holds another state than this rank does")
    return digests


def nbytes_of(leaves: Sequence[Leaf]) -> int:
    return sum(leaf.stop - leaf.start for leaf in leaves)
