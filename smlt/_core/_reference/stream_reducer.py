"""`StreamReducer` and `FrameReducer` in NumPy: they keep everything, and reduce it at the end."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core import arguments
from smlt._core._reference.arithmetic import scaled_sum
from smlt._core._reference.buffers import (
    DTYPES,
    ORDERS,
    checked_shards,
    refuse_overlap_with_shards,
    writable_floats,
)
from smlt._core._reference.frame import Frame, check_float
from smlt._core.frame_header import FrameFormatError, Header


class StreamReducer:
    """Keeps every shard until `finish`: right, and as large as the batch."""

    def __init__(
        self,
        count: Any,
        world_size: Any,
        *,
        dtype: Any = None,
        weights: Any = None,
        order: Any = "tree",
        threads: Any = 1,
    ) -> None:
        self._count = arguments.integer("count", count, 0, arguments.MAX_COUNT)
        self._world_size = arguments.integer("world_size", world_size, 1, arguments.MAX_WORLD)
        self._dtype = None if dtype is None else arguments.choice("dtype", dtype, DTYPES)
        self._weights = None
        if weights is not None:
            self._weights = arguments.weights(weights, self._world_size, "shards")
        self._order = arguments.choice("order", order, ORDERS)
        arguments.threads(threads)
        self._held: dict[int, Any] = {}

    @property
    def missing(self) -> list[int]:
        return [i for i in range(self._world_size) if i not in self._held]

    @property
    def held(self) -> list[int]:
        return sorted(self._held)

    @property
    def partial_count(self) -> int:
        return 0

    def add(self, index: Any, shard: Any) -> list[int]:
        index = arguments.integer("index", index)
        if index >= self._world_size:
            raise ValueError(f"shard {index} is outside a world of {self._world_size}")
        if index in self._held:
            raise ValueError(f"shard {index} has been added already")
        _, self._dtype, _ = checked_shards([shard], self._count, self._dtype, None)
        self._held[index] = shard
        return []

    def finish(self, out: Any, scale: Any = None) -> None:
        if self.missing:
            raise ValueError(
                f"{len(self.missing)} of {self._world_size} shards are missing: {self.missing[:8]}"
            )
        target = writable_floats(out, "out", self._count)
        shards = [self._held[i] for i in self.held]
        arrays, _, factors = checked_shards(shards, self._count, self._dtype, self._weights)
        refuse_overlap_with_shards(arrays, target, "out", may_be_same=True)
        factor = None if scale is None else arguments.number("scale", scale)
        target[:] = scaled_sum(arrays, factors, factor, self._order)
        self._held.clear()


class FrameReducer:
    """Decodes every frame at once and keeps it until `finish`."""

    def __init__(
        self,
        count: Any,
        world_size: Any,
        *,
        dtype: Any = "fp32",
        weights: Any = None,
        order: Any = "tree",
        threads: Any = 1,
    ) -> None:
        arguments.choice("dtype", dtype, DTYPES)
        self._stream = StreamReducer(
            count, world_size, dtype=dtype, weights=weights, order=order, threads=threads
        )
        self._count = arguments.integer("count", count)
        self._dtype = dtype

    @property
    def missing(self) -> list[int]:
        return self._stream.missing

    def add(self, index: Any, frame: Any, *, verify: bool = True) -> tuple[Header, list[int]]:
        opened = Frame(frame, 4 * self._count, verify)
        tensor = opened.header.only
        check_float(tensor, self._count)
        if tensor.dtype != self._dtype:
            raise FrameFormatError(f"the frame holds {tensor.dtype}, {self._dtype} was expected")
        opened.verify()
        decoded: NDArray[np.float32] = opened.decode_stored(tensor).copy()
        return opened.header, self._stream.add(index, decoded)

    def add_shard(self, index: Any, shard: Any) -> list[int]:
        return self._stream.add(index, shard)

    def finish(self, out: Any, scale: Any = None) -> None:
        self._stream.finish(out, scale)
