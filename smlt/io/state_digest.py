"""The digest of a training state, made so that ranks can share the work.

Each tensor, in the order of names, is cut into leaves of 1 MiB (the last one shorter); a leaf's
digest is the SHA-256 of its bytes. The state's digest is the SHA-256 over one line of JSON per
tensor, ``["name","dtype",[shape]]``, each followed by its leaves' digests, one hexadecimal line
each, and a last line with the scalars as canonical JSON. It does not depend on how many ranks
there are: leaves are also what parts of a checkpoint consist of.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from smlt.io import exact_json
from smlt.io.tensor import ITEM_SIZES, Tensor, as_tensor

LEAF_BYTES = 1 << 20
"""A multiple of every element size, so that no element is cut."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece of a tensor; ``start`` and ``stop`` are bytes of the tensor, ``offset`` of all."""

    spec: TensorSpec
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class StateLayout:
    """The tensors of a state in the order of their names, and the leaves they are cut into."""

    specs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> StateLayout:
        names = sorted(tensors)
        return cls(tuple(TensorSpec(n, tensors[n].dtype, tensors[n].shape) for n in names))

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        leaves = []
        offset = 0
        for spec in self.specs:
            for start in range(0, spec.nbytes, LEAF_BYTES):
                stop = min(start + LEAF_BYTES, spec.nbytes)
                leaves.append(Leaf(spec, start, stop, offset))
                offset += stop - start
        return tuple(leaves)

    @cached_property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    def part(self, index: int, parts: int) -> Sequence[Leaf]:
        """Return the leaves of a part: consecutive, and balanced to within one leaf."""
        offsets = [leaf.offset for leaf in self.leaves]
        first, last = (
            bisect.bisect_left(offsets, -(-i * self.nbytes // parts)) for i in (index, index + 1)
        )
        return self.leaves[first:last]


def leaf_digests(tensors: Mapping[str, Tensor], leaves: Iterable[Leaf]) -> tuple[str, ...]:
    """Return the digest of each leaf, in hexadecimal. Blocks the thread, but frees the GIL."""
    return tuple(
        hashlib.sha256(tensors[leaf.spec.name].data[leaf.start : leaf.stop].data).hexdigest()
        for leaf in leaves
    )


def combined_digest(layout: StateLayout, digests: Sequence[str], scalars: Mapping[str, Any]) -> str:
    """Return the digest of the state whose leaves have these digests: ``sha256:`` and 64 digits."""
    total = hashlib.sha256()
    remaining = iter(zip(layout.leaves, digests, strict=True))
    for spec in layout.specs:
        line = json.dumps([spec.name, spec.dtype, list(spec.shape)], separators=(",", ":"))
        total.update(f"{line}\n".encode())
        for _ in range(0, spec.nbytes, LEAF_BYTES):
            total.update(f"{next(remaining)[1]}\n".encode())
    total.update(f"{exact_json.dumps(dict(scalars))}\n".encode())
    return f"sha256:{total.hexdigest()}"


def state_digest(
    tensors: Mapping[str, Tensor | NDArray[Any]], scalars: Mapping[str, Any] | None = None
) -> str:
    """Return the digest of a whole state. Blocks the thread, but frees the GIL."""
    wrapped = {name: as_tensor(array) for name, array in tensors.items()}
    layout = StateLayout.of(wrapped)
    return combined_digest(layout, leaf_digests(wrapped, layout.leaves), scalars or {})


def weights_digest(tensors: Mapping[str, Tensor | NDArray[Any]]) -> str:
    """Return the digest of weights: that of a state without scalars."""
    return state_digest(tensors)
