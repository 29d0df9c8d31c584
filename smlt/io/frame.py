"""Shards as frames: a span of float32 values, and what its rank says about them.

The frame itself (chunks, compression, checksum) is ``smlt._core.codec``; this is its typed face,
and the place where what is wrong with a frame becomes a FrameError.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from smlt._core import codec
from smlt.errors import FrameError
from smlt.io.parameter_store import Buffer

Dtype = Literal["fp32", "bf16", "fp16"]
Pieces = list[bytes | memoryview]

MAX_META_BYTES = 1 << 20
MAX_METRICS = 1000
MAX_NAME_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Meta:
    """What travels with a shard beside its values."""

    present: bytes = b""
    """Bits of the shard's tensors that had a gradient at all."""
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sums and their weights, by name."""


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a frame says of its shard."""

    flags: int
    weight: float
    meta: Meta


def encode_shard(
    shard: NDArray[np.float32],
    header: ShardHeader,
    dtype: Dtype = "fp32",
    residual: NDArray[np.float32] | None = None,
) -> Pieces:
    """Return the frame in pieces; dense values are referred to and must not change until sent.

    Rounded to a shorter dtype, they are a copy; ``residual`` is added before, and holds afterwards
    what was rounded away.
    """
    pieces: Pieces = codec.encode(
        shard,
        wire_dtype=None if dtype == "fp32" else dtype,
        flags=header.flags,
        weight=header.weight,
        meta=_pack(header.meta),
        residual=residual,
    )
    return pieces


def decode_shard_into(
    frame: Buffer, out: NDArray[np.float32], dtype: Dtype = "fp32"
) -> ShardHeader:
    """Decode into ``out``, whose size is what the receiver expects, as is the frame's dtype.

    Raises:
        FrameError: the bytes are no frame, are damaged, or hold another number of values; what
            ``out`` holds then is undefined.
    """
    with _translated():
        header = codec.decode_into(frame, out)
        _expect(header, dtype, out.size)
        return _shard_header(header)


def decode_shard_add(
    frame: Buffer, out: NDArray[np.float32], *, scale: float | None = None
) -> ShardHeader:
    """Add the decoded values, times ``scale``, to ``out``.

    Raises:
        FrameError: as ``decode_shard_into``.
    """
    with _translated():
        return _shard_header(codec.decode_add(frame, out, scale=scale))


class ShardReducer:
    """Sums one shard over all ranks straight from their frames, in the fixed tree of ranks.

    A frame is referred to, not copied: its memory must not change before ``add`` has returned its
    rank, or the sum is finished.
    """

    def __init__(self, elements: int, world_size: int, dtype: Dtype = "fp32") -> None:
        self._lock = threading.Lock()
        self._frames = codec.FrameReducer(elements, world_size, dtype=dtype)

    def add(self, rank: int, frame: Buffer) -> tuple[ShardHeader, list[int]]:
        """Check a frame and add it, on any thread; return the ranks whose memory is free again.

        Raises:
            FrameError: the bytes are no frame, are damaged, or hold another number of values.
                Nothing has been added then.
        """
        with _translated(), self._lock:
            header, freed = self._frames.add(rank, frame)
            return _shard_header(header), freed

    def add_own(self, rank: int, shard: NDArray[np.float32]) -> None:
        """Add fp32 values that never were a frame; they may lie where the sum will be written."""
        self._frames.add_shard(rank, shard)

    def finish(self, out: NDArray[np.float32], scale: float) -> None:
        """Write ``scale`` times the sum, once every rank has been added."""
        self._frames.finish(out, scale)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (codec.FrameFormatError, msgpack.UnpackException, ValueError) as exc:
        raise FrameError(f"the frame cannot be used: {exc}") from exc


def _expect(header: codec.Header, dtype: Dtype, elements: int) -> None:
    if (header.dtype, header.count) != (dtype, elements):
        held = f"{header.count} elements of {header.dtype}"
        raise ValueError(f"it holds {held}, {elements} of {dtype} were expected")


def _shard_header(header: codec.Header) -> ShardHeader:
    return ShardHeader(header.flags, header.weight, _unpack(header.meta))


def _pack(meta: Meta) -> bytes:
    if not meta.present and not meta.metrics:
        return b""
    metrics = {name: (float(t), float(w)) for name, (t, w) in meta.metrics.items()}
    packed: bytes = msgpack.packb({"p": meta.present, "m": metrics})
    return packed


def _unpack(data: bytes) -> Meta:
    if not data:
        return Meta()
    if len(data) > MAX_META_BYTES:
        raise ValueError(f"its metadata has {len(data)} bytes")
    document = msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        max_bin_len=MAX_META_BYTES,
        max_str_len=MAX_NAME_BYTES,
        max_map_len=MAX_METRICS,
        max_array_len=2,
        max_ext_len=0,
    )
    match document:
        case {"p": bytes(present), "m": dict(metrics)} if len(document) == 2:
            return Meta(present, {name: _pair(name, pair) for name, pair in metrics.items()})
    raise ValueError("its metadata is not that of a shard")


def _pair(name: Any, pair: Any) -> tuple[float, float]:
    match name, pair:
        case str(), [float(total), float(weight)]:
            return total, weight
    raise ValueError(f"its metric {name!r} is not a sum and a weight")
