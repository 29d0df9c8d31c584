"""The header of a frame: what it holds, how it is packed, and what a receiver may refuse.

    offset  0  4 bytes   b"SMLT"
            4  u32       version
            8  u64       XXH3 of everything from offset 16 to the payload
           16  u64       length of the msgpack header
           24  msgpack   a map with the keys of KEYS, in that order
               zeros     up to a multiple of 64, where the payload begins

`docs/wire-format.md` is the contract.
"""

import math
import struct
from dataclasses import dataclass

import msgpack

MAGIC = b"SMLT"
VERSION = 1
PREFIX = struct.Struct("<4sIQQ")
HASHED_FROM = 16
ALIGNMENT = 64
CHUNK = 65536
KEYS = ("tensors", "flags", "weight", "meta", "chunks", "sums")

MAX_META = 1 << 20
MAX_TENSORS = 1 << 16
MAX_NAME = 1024
MAX_DIMS = 32
# Names, shapes and meta; the chunk tables come on top, in proportion to the payload.
MAX_FIXED_HEADER = 4 << 20

ITEM_BYTES = {
    "fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8, "bool": 1,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip
# bf16 has no NumPy type: its bits travel as uint16.
NUMPY_TYPES = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2", "fp64": "<f8", "bool": "|b1"} | {
    name: f"<{name[0]}{size}" for name, size in ITEM_BYTES.items() if "int" in name
}


class FrameFormatError(ValueError):
    """Bytes that are no frame, a damaged frame, or not the frame that the receiver expects."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a frame, as it is on the wire."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says about itself; dtype, shape and count are those of its only tensor."""

    tensors: tuple[TensorInfo, ...]
    flags: int
    weight: float
    meta: bytes

    @property
    def only(self) -> TensorInfo:
        """The tensor of a frame of one.

        Raises:
            FrameFormatError: there are none or several.
        """
        if len(self.tensors) != 1:
            raise FrameFormatError(f"the frame holds {len(self.tensors)} tensors, not one")
        return self.tensors[0]

    @property
    def dtype(self) -> str:
        return self.only.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.only.shape

    @property
    def count(self) -> int:
        return self.only.count

    @property
    def nbytes(self) -> int:
        """Size of all tensors, decoded to their wire dtype."""
        return sum(tensor.nbytes for tensor in self.tensors)


def check_sendable(header: Header) -> None:
    """Refuse to make a frame that no receiver would take.

    Raises:
        ValueError: flags, weight, meta, a name or a shape is outside the format's limits.
    """
    if not 0 <= header.flags < 1 << 32:
        raise ValueError(f"flags must be an unsigned 32-bit mask, not {header.flags}")
    if len(header.meta) > MAX_META:
        raise ValueError(f"meta has {len(header.meta)} bytes, the limit is {MAX_META}")
    if len(header.tensors) > MAX_TENSORS:
        raise ValueError(f"{len(header.tensors)} tensors, the limit is {MAX_TENSORS}")
    for tensor in header.tensors:
        name, dims = tensor.name, len(tensor.shape)
        if len(name.encode()) > MAX_NAME:
            raise ValueError(f"a tensor's name has more than {MAX_NAME} bytes: {name[:40]!r}...")
        if dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {dims} dimensions, the limit is {MAX_DIMS}")


def pack_fields(header: Header, chunks: bytes, sums: bytes) -> bytes:
    """Return the msgpack part of the header."""
    tensors = [[tensor.name, tensor.dtype, tensor.shape] for tensor in header.tensors]
    values = (tensors, header.flags, float(header.weight), header.meta, chunks, sums)
    packed: bytes = msgpack.packb(dict(zip(KEYS, values, strict=True)))
    if len(packed) - len(chunks) - len(sums) > MAX_FIXED_HEADER:
        raise ValueError(f"names, shapes and meta take {len(packed)} bytes of header: too many")
    return packed


def padding(length: int) -> int:
    """Return the zeros between a msgpack part of `length` bytes and the payload."""
    return -(PREFIX.size + length) % ALIGNMENT


def check_tensor(tensor: TensorInfo) -> None:
    """Refuse a tensor that the format does not know.

    Raises:
        FrameFormatError: an unknown dtype, or a shape too large to be one.
    """
    if tensor.dtype not in ITEM_BYTES:
        raise FrameFormatError(
            f"tensor {tensor.name!r} has the unknown dtype {tensor.dtype[:20]!r}"
        )
    if tensor.nbytes > 1 << 48:
        raise FrameFormatError(f"tensor {tensor.name!r} claims {tensor.nbytes} bytes")


def header_limit(max_bytes: int) -> int:
    """Return the longest msgpack part that tensors of `max_bytes` in all may need."""
    return MAX_FIXED_HEADER + 12 * (max_bytes // CHUNK + MAX_TENSORS)
