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
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from smlt._core import arguments

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
# The struct formats of buffers that hold a dtype.
FORMATS = {
    "fp32": "f", "fp16": "eH", "bf16": "H", "fp64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "il", "int64": "lq",
    "uint8": "B", "uint16": "H", "uint32": "IL", "uint64": "LQ",
}  # fmt: skip
# bf16 comes as uint16, which stands for itself unless the sender says so.
DTYPE_OF = {np.dtype(code).str: name for name, code in NUMPY_TYPES.items() if name != "bf16"}


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


def sendable(tensors: tuple[TensorInfo, ...], flags: Any, weight: Any, meta: Any) -> Header:
    """Return a header, or refuse to make a frame that no receiver would take.

    Raises:
        TypeError: flags, weight or meta is of another type.
        ValueError: flags, meta, a name or a shape is outside the format's limits.
    """
    if not isinstance(meta, bytes):
        raise TypeError(f"meta must be bytes, not {arguments.kind(meta)}")
    if len(meta) > MAX_META:
        raise ValueError(f"meta has {len(meta)} bytes, the limit is {MAX_META}")
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors, the limit is {MAX_TENSORS}")
    for tensor in tensors:
        name, dims = tensor.name, len(tensor.shape)
        if name_bytes(name) > MAX_NAME:
            raise ValueError(f"a tensor's name has more than {MAX_NAME} bytes: {name[:40]!r}...")
        if dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {dims} dimensions, the limit is {MAX_DIMS}")
    mask = arguments.integer("flags", flags, 0, (1 << 32) - 1)
    return Header(tensors, mask, arguments.number("weight", weight), meta)


def name_bytes(name: str) -> int:
    """Return the length of a tensor's name on the wire.

    Raises:
        ValueError: it has characters that UTF-8 has not.
    """
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"the tensor's name {name[:40]!r} cannot be written as UTF-8") from None


def frame_bound(nbytes: int, meta_bytes: int = 0) -> int:
    """Return the most bytes that a frame of one tensor of `nbytes` takes.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is negative.
    """
    payload = arguments.integer("nbytes", nbytes)
    return payload + 12 * -(-payload // CHUNK) + arguments.integer("meta_bytes", meta_bytes) + 1024


def pack_fields(header: Header, chunks: bytes, sums: bytes) -> bytes:
    """Return the msgpack part of the header."""
    tensors = [[tensor.name, tensor.dtype, tensor.shape] for tensor in header.tensors]
    values = (tensors, header.flags, header.weight, header.meta, chunks, sums)
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


def plain_array(array: Any, what: str) -> NDArray[Any]:
    """Return an array as NumPy sees it, without a copy.

    Raises:
        TypeError: it is none, or of a dtype that frames do not carry.
        BufferError: it is not C-contiguous.
    """
    try:
        plain = np.asarray(array, copy=False)
    except (TypeError, ValueError, RuntimeError) as exc:
        # torch says here what to do; NumPy only that it would have to copy.
        reason = "" if isinstance(exc, ValueError) else f": {str(exc).splitlines()[0]}"
        raise TypeError(f"{what} is {arguments.kind(array)}, not an array{reason}") from None
    if not plain.flags.c_contiguous:
        raise BufferError(f"{what} must be C-contiguous")
    if plain.dtype.str not in DTYPE_OF:
        raise TypeError(f"{what} has dtype {plain.dtype}, which frames do not carry")
    return plain
