"""An opened frame in NumPy, read with the msgpack package and checked afterwards."""

from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from smlt._core import frame_header
from smlt._core._reference import chunks as modes
from smlt._core._reference.buffers import DTYPES, contiguous, stored_as
from smlt._core.frame_header import CHUNK, FrameFormatError, Header, TensorInfo


def checksum(data: Any) -> int:
    plain = stored_as(contiguous(data, "data", writable=False), np.uint8)
    return xxhash.xxh3_64_intdigest(plain.data)


def check_float(tensor: TensorInfo, count: int) -> None:
    if tensor.dtype not in DTYPES:
        raise FrameFormatError(f"the frame holds {tensor.dtype}, which cannot be reduced")
    if tensor.count != count:
        raise FrameFormatError(f"the frame holds {tensor.count} elements, {count} were expected")


class Frame:
    """An opened frame: header, and each chunk's mode, bytes and checksum."""

    def __init__(self, source: Any, max_bytes: int | None, verify: bool) -> None:
        data = stored_as(contiguous(source, "a frame", writable=False), np.uint8)
        if max_bytes is None:
            max_bytes = data.size * CHUNK
        fields, payload = _open(data, frame_header.header_limit(max_bytes))
        self.data = data
        self.header, entries, sums = _parse(fields)
        if self.header.nbytes > max_bytes:
            raise FrameFormatError(
                f"the frame holds {self.header.nbytes} bytes of tensors, "
                f"at most {max_bytes} were expected"
            )
        sizes = [
            min(CHUNK, tensor.nbytes - at)
            for tensor in self.header.tensors
            for at in range(0, tensor.nbytes, CHUNK)
        ]
        if verify and sizes and not sums:
            raise FrameFormatError("the frame carries no checksum of its payload")
        if len(entries) not in (0, 4 * len(sizes)) or len(sums) not in (0, 8 * len(sizes)):
            raise FrameFormatError(
                "the frame's header is malformed: a table does not fit the tensors"
            )
        table = np.frombuffer(entries, "<u4")
        self.modes = (table >> 28).tolist() if entries else [modes.RAW] * len(sizes)
        stored = (table & 0x0FFFFFFF).tolist() if entries else sizes
        ends = np.cumsum([0, *stored]).tolist()
        if ends[-1] != payload.size:
            raise FrameFormatError(
                f"the frame has {payload.size} bytes of payload, its header promises {ends[-1]}"
            )
        self.sizes = sizes
        self.chunks = [payload[start:end] for start, end in pairwise(ends)]
        self._sums = np.frombuffer(sums, "<u8").tolist() if verify else []

    def verify(self) -> None:
        for i, (chunk, claimed) in enumerate(zip(self.chunks, self._sums, strict=False)):
            if checksum(chunk) != claimed:
                raise FrameFormatError(f"the checksum of chunk {i} is wrong")

    def decode(self, tensor: TensorInfo, first: int) -> modes.Bytes:
        """Return the bytes of the tensor whose first chunk is `first`."""
        word = modes.word_bytes(tensor.dtype)
        pieces = [
            modes.decode(self.chunks[i], self.modes[i], self.sizes[i], word)
            for i in range(first, first - (-tensor.nbytes // CHUNK))
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)

    def decode_stored(self, tensor: TensorInfo) -> NDArray[Any]:
        """Return the only tensor as an array of its stored float type."""
        stored = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}[tensor.dtype]
        return self.decode(tensor, 0).view(stored)


def _open(data: modes.Bytes, limit: int) -> tuple[bytes, modes.Bytes]:
    prefix = frame_header.PREFIX
    if data.size < prefix.size:
        raise FrameFormatError(f"a frame has at least {prefix.size} bytes, this has {data.size}")
    magic, version, claimed, length = prefix.unpack(data[: prefix.size].tobytes())
    if magic != frame_header.MAGIC:
        raise FrameFormatError("the bytes do not begin as a frame does")
    if version != frame_header.VERSION:
        raise FrameFormatError(
            f"the frame has version {version}, this smlt reads {frame_header.VERSION}"
        )
    if length > limit:
        raise FrameFormatError(f"the frame's header claims {length} bytes, the limit is {limit}")
    start = prefix.size + length + frame_header.padding(length)
    if start > data.size:
        raise FrameFormatError(f"the frame ends at byte {data.size}, inside its header")
    if checksum(data[frame_header.HASHED_FROM : start]) != claimed:
        raise FrameFormatError("the checksum of the frame's header is wrong")
    return data[prefix.size : prefix.size + length].tobytes(), data[start:]


def _parse(fields: bytes) -> tuple[Header, bytes, bytes]:
    try:
        raw = msgpack.unpackb(fields, max_array_len=frame_header.MAX_TENSORS, max_map_len=6)
    except (ValueError, RecursionError, msgpack.UnpackException) as exc:
        raise FrameFormatError(f"the frame's header is malformed: {exc}") from exc
    if not isinstance(raw, dict) or tuple(raw) != frame_header.KEYS:
        raise FrameFormatError("the frame's header is malformed: its keys are not a frame's")
    tensors, flags, weight, meta, entries, sums = raw.values()
    binary = all(isinstance(value, bytes) for value in (meta, entries, sums))
    if not (binary and isinstance(tensors, list) and isinstance(weight, float)):
        raise FrameFormatError("the frame's header is malformed: a field has another type")
    if type(flags) is not int or not 0 <= flags < 1 << 32 or len(meta) > frame_header.MAX_META:
        raise FrameFormatError("the frame's header is malformed: flags or meta are out of range")
    return (
        Header(tuple(_parse_tensor(item) for item in tensors), flags, weight, meta),
        entries,
        sums,
    )


def _parse_tensor(item: Any) -> TensorInfo:
    match item:
        case [str(name), str(dtype), list(shape)]:
            sizes = all(type(n) is int and n >= 0 for n in shape)
            right = sizes and len(shape) <= frame_header.MAX_DIMS
            if right and len(name.encode()) <= frame_header.MAX_NAME:
                tensor = TensorInfo(name, dtype, tuple(shape))
                frame_header.check_tensor(tensor)
                return tensor
    raise FrameFormatError("the frame's header is malformed: a tensor is none")
