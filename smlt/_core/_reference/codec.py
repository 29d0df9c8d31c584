"""`codec` in NumPy: same names, same signatures, same format; it may choose other chunk modes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from smlt._core import frame_header
from smlt._core._reference import chunks as modes
from smlt._core._reference.shard_reduce import (
    DTYPES,
    ORDERS,
    StreamReducer,
    _contiguous,
    _format,
    _scaled_sum,
    cast,
    widen,
)
from smlt._core.frame_header import CHUNK, FrameFormatError, Header, TensorInfo

__all__ = [
    "FrameFormatError", "FrameReducer", "Header", "TensorInfo", "checksum", "decode_add",
    "decode_into", "decode_reduce", "decode_tensors", "encode", "encode_into", "encode_tensors",
    "frame_bound", "read_header", "use_instruction_set", "verify",
]  # fmt: skip

_DTYPE_OF = {
    np.dtype(code).str: name for name, code in frame_header.NUMPY_TYPES.items() if name != "bf16"
}
_FORMATS = {
    "fp32": "f", "fp16": "eH", "bf16": "H", "fp64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "il", "int64": "lq",
    "uint8": "B", "uint16": "H", "uint32": "IL", "uint64": "LQ",
}  # fmt: skip


def use_instruction_set(name: str) -> None:
    """Accept "numpy" and nothing else."""
    if name != "numpy":
        raise ValueError(f"this machine has no {name!r} kernels")


def checksum(data: Any) -> int:
    return xxhash.xxh3_64_intdigest(_contiguous(data, "data", writable=False).cast("B"))


# ---- encoding ----


def _plain(array: Any, what: str) -> NDArray[Any]:
    try:
        plain = np.asarray(array, copy=False)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{what} is a {type(array).__name__}, not an array: {exc}") from None
    if not plain.flags.c_contiguous:
        raise BufferError(f"{what} must be C-contiguous")
    if plain.dtype.str not in _DTYPE_OF:
        raise TypeError(f"{what} has dtype {plain.dtype}, which frames do not carry")
    return plain


def _tensor(
    name: str, array: Any, wire_dtype: str | None, residual: Any
) -> tuple[TensorInfo, modes.Bytes]:
    plain = _plain(array, f"tensor {name!r}" if name else "the array")
    dtype = _DTYPE_OF[plain.dtype.str]
    if wire_dtype in (None, dtype):
        if residual is not None:
            raise ValueError("a residual needs a wire_dtype that loses something: fp16 or bf16")
    elif wire_dtype not in DTYPES:
        raise ValueError(f"wire_dtype must be one of {', '.join(DTYPES)}, not {wire_dtype!r}")
    elif dtype == "fp32":
        if residual is not None and not residual.flags.c_contiguous:
            raise BufferError("residual must be C-contiguous")  # a copy of it would be updated
        if residual is not None and residual.size != plain.size:
            raise ValueError(f"residual has {residual.size} elements, not {plain.size}")
        if residual is not None and np.shares_memory(residual, plain):
            raise ValueError("residual and the array overlap in memory")
        flat = None if residual is None else residual.reshape(-1)
        plain = cast(plain.reshape(-1), wire_dtype, flat).reshape(plain.shape)
        dtype = wire_dtype
    elif dtype == "uint16" and wire_dtype == "bf16" and residual is None:
        dtype = "bf16"
    else:
        raise TypeError(f"an array of {dtype} cannot be sent as {wire_dtype}")
    return TensorInfo(name, dtype, plain.shape), plain.reshape(-1).view(np.uint8)


def _frame(
    pairs: list[tuple[TensorInfo, modes.Bytes]],
    flags: int,
    weight: float,
    meta: bytes,
    compress: bool,
    checked: bool,
) -> list[Any]:
    header = Header(tuple(tensor for tensor, _ in pairs), flags, weight, meta)
    frame_header.check_sendable(header)
    stored: list[tuple[int, Any]] = []
    for tensor, data in pairs:
        word = modes.word_bytes(tensor.dtype)
        stored += [
            modes.encode(chunk, word) if compress else (modes.RAW, chunk)
            for chunk in modes.split(data)
        ]
    dense = all(mode == modes.RAW for mode, _ in stored)
    entries = np.array([mode << 28 | len(piece) for mode, piece in stored], "<u4")
    sums = np.array([checksum(piece) for _, piece in stored] if checked else [], "<u8")
    fields = frame_header.pack_fields(header, b"" if dense else entries.tobytes(), sums.tobytes())
    hashed = len(fields).to_bytes(8, "little") + fields + bytes(frame_header.padding(len(fields)))
    prefix = frame_header.PREFIX.pack(
        frame_header.MAGIC, frame_header.VERSION, checksum(hashed), len(fields)
    )
    return [prefix + hashed[8:], *(memoryview(piece) for _, piece in stored if len(piece))]


def encode(
    array: Any,
    *,
    wire_dtype: str | None = None,
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: Any = None,
) -> list[Any]:
    pair = _tensor("", array, wire_dtype, residual)
    return _frame([pair], flags, weight, meta, compress, checksum)


def encode_tensors(
    tensors: Mapping[str, Any],
    *,
    bf16: Collection[str] = (),
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
) -> list[Any]:
    pairs = [
        _tensor(name, array, "bf16" if name in bf16 else None, None)
        for name, array in tensors.items()
    ]
    return _frame(pairs, flags, weight, meta, compress, checksum)


def encode_into(
    array: Any,
    out: Any,
    *,
    wire_dtype: str | None = None,
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: Any = None,
) -> int:
    pair = _tensor("", array, wire_dtype, residual)
    frame = b"".join(_frame([pair], flags, weight, meta, compress, checksum))
    target = memoryview(out).cast("B")
    bound = max(len(frame), pair[1].size)
    if len(target) < bound:
        raise ValueError(f"out has {len(target)} bytes, the frame may need {bound}")
    target[: len(frame)] = frame
    return len(frame)


def frame_bound(nbytes: int, meta_bytes: int = 0) -> int:
    return nbytes + 12 * -(-nbytes // CHUNK) + meta_bytes + 1024


# ---- decoding ----


class _Frame:
    """An opened frame: header, and each chunk's mode, bytes and checksum."""

    def __init__(self, source: Any, max_bytes: int, verify: bool) -> None:
        data = np.frombuffer(_contiguous(source, "a frame", writable=False).cast("B"), np.uint8)
        fields, payload = _open(data, frame_header.header_limit(max_bytes))
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
            raise FrameFormatError("the frame's header is malformed: a table does not fit")
        table = np.frombuffer(entries, "<u4")
        self.raw = not entries
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
            if sizes and len(shape) <= frame_header.MAX_DIMS and len(name.encode()) <= 1024:
                tensor = TensorInfo(name, dtype, tuple(shape))
                frame_header.check_tensor(tensor)
                return tensor
    raise FrameFormatError("the frame's header is malformed: a tensor is none")


def _limit(frame: Any, max_bytes: int | None) -> int:
    return memoryview(frame).nbytes * CHUNK if max_bytes is None else max_bytes


def read_header(frame: Any, *, max_bytes: int | None = None) -> Header:
    return _Frame(frame, _limit(frame, max_bytes), verify=False).header


def verify(frame: Any, *, max_bytes: int | None = None) -> Header:
    opened = _Frame(frame, _limit(frame, max_bytes), verify=True)
    opened.verify()
    return opened.header


def _check_float(tensor: TensorInfo, count: int) -> None:
    if tensor.dtype not in DTYPES:
        raise FrameFormatError(f"the frame holds {tensor.dtype}, which cannot be reduced")
    if tensor.count != count:
        raise FrameFormatError(f"the frame holds {tensor.count} elements, {count} were expected")


def decode_into(frame: Any, out: Any, *, verify: bool = True, threads: int = 1) -> Header:
    opened = _Frame(frame, memoryview(out).nbytes, verify)
    tensor = opened.header.only
    target = _contiguous(out, "out", writable=True)
    form = _format(target)
    wide = form == "f" and tensor.dtype in ("fp16", "bf16")
    if not wide and form != "B" and form not in _FORMATS[tensor.dtype]:
        raise FrameFormatError(f"the frame holds {tensor.dtype}, out has items of format {form!r}")
    if target.nbytes != (4 * tensor.count if wide else tensor.nbytes):
        raise FrameFormatError(
            f"the frame holds {tensor.nbytes} bytes, {target.nbytes} were expected"
        )
    opened.verify()
    if target.nbytes:
        data = opened.decode(tensor, 0)
        plain = widen(opened.decode_stored(tensor)).view(np.uint8) if wide else data
        np.frombuffer(target.cast("B"), np.uint8)[:] = plain
    return opened.header


def _float_target(out: Any) -> NDArray[np.float32]:
    target = _contiguous(out, "out", writable=True)
    if _format(target) != "f":
        raise TypeError("out must be float32")
    return np.frombuffer(target, np.float32) if target.nbytes else np.empty(0, np.float32)


def decode_add(
    frame: Any, out: Any, *, scale: float | None = None, verify: bool = True, threads: int = 1
) -> Header:
    opened = _Frame(frame, memoryview(out).nbytes, verify)
    target = _float_target(out)
    _check_float(opened.header.only, target.size)
    opened.verify()
    value = widen(opened.decode_stored(opened.header.only))
    with np.errstate(all="ignore"):
        target += value if scale is None else np.float32(scale) * value
    return opened.header


def decode_tensors(
    frame: Any, *, max_bytes: int, verify: bool = True, threads: int = 1
) -> dict[str, NDArray[Any]]:
    opened = _Frame(frame, max_bytes, verify)
    opened.verify()
    arrays: dict[str, NDArray[Any]] = {}
    first = 0
    for tensor in opened.header.tensors:
        if tensor.name in arrays:
            raise FrameFormatError(f"the frame holds the tensor {tensor.name!r} twice")
        data = opened.decode(tensor, first)
        array = data.view(frame_header.NUMPY_TYPES[tensor.dtype]).reshape(tensor.shape)
        arrays[tensor.name] = array
        first -= -tensor.nbytes // CHUNK
    return arrays


def decode_reduce(
    frames: Iterable[Any],
    out: Any,
    *,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: str = "tree",
    verify: bool = True,
    threads: int = 1,
) -> list[Header]:
    target = _float_target(out)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    opened: list[_Frame] = []
    for i, source in enumerate(frames):
        try:
            opened.append(_Frame(source, 4 * target.size, verify))
            _check_float(opened[-1].header.only, target.size)
            opened[-1].verify()
        except FrameFormatError as exc:
            raise FrameFormatError(f"frame {i}: {exc}") from None
        if opened[-1].header.dtype != opened[0].header.dtype:
            raise FrameFormatError(
                f"frame {i} holds {opened[-1].header.dtype}, frame 0 holds {opened[0].header.dtype}"
            )
    if not opened:
        raise ValueError("there is no frame to reduce")
    shards = [frame.decode_stored(frame.header.only) for frame in opened]
    target[:] = _scaled_sum(shards, weights, scale, order)
    return [frame.header for frame in opened]


class FrameReducer:
    """Decodes every frame at once and keeps it until `finish`."""

    def __init__(
        self,
        count: int,
        world_size: int,
        *,
        dtype: str = "fp32",
        weights: Sequence[float] | None = None,
        order: str = "tree",
        threads: int = 1,
    ) -> None:
        self._stream = StreamReducer(
            count, world_size, dtype=dtype, weights=weights, order=order, threads=threads
        )
        self._count = count
        self._dtype = dtype

    @property
    def missing(self) -> list[int]:
        return self._stream.missing

    def add(self, index: int, frame: Any, *, verify: bool = True) -> tuple[Header, list[int]]:
        opened = _Frame(frame, 4 * self._count, verify)
        tensor = opened.header.only
        _check_float(tensor, self._count)
        if tensor.dtype != self._dtype:
            raise FrameFormatError(f"the frame holds {tensor.dtype}, {self._dtype} was expected")
        opened.verify()
        return opened.header, self._stream.add(index, opened.decode_stored(tensor).copy())

    def add_shard(self, index: int, shard: Any) -> list[int]:
        return self._stream.add(index, shard)

    def finish(self, out: Any, scale: float | None = None) -> None:
        self._stream.finish(out, scale)
