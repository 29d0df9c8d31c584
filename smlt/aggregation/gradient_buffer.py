"""One flat float32 buffer for all that is averaged in a step, with a named view for each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.shard_plan import ShardPlan

_CACHE_LINE = 64


class GradientBuffer:
    """The gradient of one rank. Tensors lie in it in the order given, that of backward.

    What a shard announces is final when every tensor that overlaps it has been reported ready;
    ``begin`` starts a step and zeroes the buffer.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.names = list(shapes)
        sizes = [prod(shape) for shape in shapes.values()]
        self._ends = np.cumsum([0, *sizes]).tolist()
        self.flat = _aligned_zeros(self._ends[-1])
        self.views: dict[str, NDArray[np.float32]] = {
            name: self.flat[start : start + size].reshape(shape)
            for (name, shape), start, size in zip(shapes.items(), self._ends, sizes, strict=False)
        }
        self._shards_of: dict[str, range] = {}
        self._tensors_of: list[list[int]] = []
        self._pending: list[int] = []
        self._reported: set[str] = set()

    def partition(self, plan: ShardPlan) -> None:
        """Learn which tensors overlap which shard of a plan."""
        self._shards_of = {}
        self._tensors_of = [[] for _ in range(plan.shards)]
        for index, name in enumerate(self.names):
            start, end = self._ends[index], self._ends[index + 1]
            overlapped = (
                range(start // plan.shard_elements, -(-end // plan.shard_elements))
                if end > start
                else range(0)
            )
            self._shards_of[name] = overlapped
            for shard in overlapped:
                self._tensors_of[shard].append(index)

    def begin(self) -> None:
        """Zero the gradient for a new step."""
        self.flat.fill(0.0)
        self._pending = [len(tensors) for tensors in self._tensors_of]
        self._reported = set()

    def ready(self, name: str, announce: Callable[[int], None]) -> None:
        """Note that a tensor is final; announce each shard that has become so. Idempotent."""
        if name in self._reported:
            return
        self._reported.add(name)
        for shard in self._shards_of[name]:
            self._pending[shard] -= 1
            if not self._pending[shard]:
                announce(shard)

    def finish(self, announce: Callable[[int], None]) -> None:
        """Report every tensor that has not been, and shards that hold no tensor at all."""
        for name in self.names:
            self.ready(name, announce)
        for shard, tensors in enumerate(self._tensors_of):
            if not tensors:
                announce(shard)

    def presence(self, shard: int, absent: frozenset[str]) -> bytes:
        """Return one bit for each tensor in the shard: whether it had a gradient here."""
        bits = [self.names[index] not in absent for index in self._tensors_of[shard]]
        return np.packbits(bits).tobytes() if bits else b""

    def present(self, bits: list[bytes]) -> frozenset[str]:
        """Return the tensors that had a gradient on some rank, from every shard's merged bits.

        A tensor without elements lies in no shard, and is never among them.
        """
        names: set[str] = set()
        for tensors, packed in zip(self._tensors_of, bits, strict=True):
            flags = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(tensors))
            names.update(
                self.names[index] for index, flag in zip(tensors, flags, strict=True) if flag
            )
        return frozenset(names)


def _aligned_zeros(elements: int) -> NDArray[np.float32]:
    """Allocate float32 zeros that begin on a cache line, as do then all shards."""
    raw = np.zeros(4 * elements + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + 4 * elements].view(np.float32)
