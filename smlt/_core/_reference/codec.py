"""`codec` in NumPy: same names, same signatures, same format; it may choose other chunk modes."""

from typing import Any

import numpy as np

from smlt._core import arguments, frame_header
from smlt._core._reference import chunks as modes
from smlt._core._reference.arithmetic import cast, scaled_sum, widen
from smlt._core._reference.buffers import (
    DTYPES,
    ORDERS,
    contiguous,
    item_format,
    refuse_overlap,
    stored_as,
    writable_floats,
)
from smlt._core._reference.frame import Frame, check_float, checksum
from smlt._core._reference.shard_reduce import use_instruction_set
from smlt._core._reference.stream_reducer import FrameReducer
from smlt._core.frame_header import CHUNK, FrameFormatError, Header, TensorInfo, frame_bound

__all__ = [
    "FrameFormatError", "FrameReducer", "Header", "TensorInfo", "checksum", "decode_add",
    "decode_into", "decode_reduce", "decode_tensors", "encode", "encode_into", "encode_tensors",
    "frame_bound", "read_header", "use_instruction_set", "verify",
]  # fmt: skip

_checksum = checksum  # `encode` has an argument of that name

# ---- encoding ----


def _tensor(
    name: str, array: Any, wire_dtype: Any, residual: Any
) -> tuple[TensorInfo, modes.Bytes]:
    plain = frame_header.plain_array(array, f"tensor {name!r}" if name else "the array")
    dtype = frame_header.DTYPE_OF[plain.dtype.str]
    wanted = dtype if wire_dtype in (None, dtype) else wire_dtype
    if wanted == dtype:
        if residual is not None:
            raise ValueError("a residual needs a wire_dtype that loses something: fp16 or bf16")
    elif arguments.choice("wire_dtype", wanted, DTYPES) and dtype == "fp32":
        loss = None
        if residual is not None:
            loss = writable_floats(residual, "residual", plain.size)
            refuse_overlap(plain, "the array", loss, "residual")
        plain = cast(plain.reshape(-1), wanted, loss).reshape(plain.shape)
    elif dtype != "uint16" or wanted != "bf16" or residual is not None:
        raise TypeError(f"an array of {dtype} cannot be sent as {wanted}")
    return TensorInfo(name, wanted, plain.shape), plain.reshape(-1).view(np.uint8)


def _frame(
    pairs: list[tuple[TensorInfo, modes.Bytes]],
    flags: Any,
    weight: Any,
    meta: Any,
    compress: bool,
    checked: bool,
) -> list[Any]:
    header = frame_header.sendable(tuple(tensor for tensor, _ in pairs), flags, weight, meta)
    stored: list[tuple[int, Any]] = []
    for tensor, data in pairs:
        word = modes.word_bytes(tensor.dtype)
        stored += [
            modes.encode(chunk, word) if compress else (modes.RAW, chunk)
            for chunk in modes.split(data)
        ]
    dense = all(mode == modes.RAW for mode, _ in stored)
    entries = np.array([mode << 28 | len(piece) for mode, piece in stored], "<u4")
    sums = np.array([_checksum(piece) for _, piece in stored] if checked else [], "<u8")
    fields = frame_header.pack_fields(header, b"" if dense else entries.tobytes(), sums.tobytes())
    hashed = len(fields).to_bytes(8, "little") + fields + bytes(frame_header.padding(len(fields)))
    prefix = frame_header.PREFIX.pack(
        frame_header.MAGIC, frame_header.VERSION, _checksum(hashed), len(fields)
    )
    return [prefix + hashed[8:], *(memoryview(piece) for _, piece in stored if len(piece))]


def encode(
    array: Any,
    *,
    wire_dtype: Any = None,
    flags: Any = 0,
    weight: Any = 0.0,
    meta: Any = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: Any = None,
) -> list[Any]:
    pair = _tensor("", array, wire_dtype, residual)
    return _frame([pair], flags, weight, meta, compress, checksum)


def encode_tensors(
    tensors: Any,
    *,
    bf16: Any = (),
    flags: Any = 0,
    weight: Any = 0.0,
    meta: Any = b"",
    compress: bool = True,
    checksum: bool = True,
) -> list[Any]:
    pairs = [
        _tensor(name, array, "bf16" if brain else None, None)
        for name, array, brain in arguments.named_arrays(tensors, bf16)
    ]
    return _frame(pairs, flags, weight, meta, compress, checksum)


def encode_into(
    array: Any,
    out: Any,
    *,
    wire_dtype: Any = None,
    flags: Any = 0,
    weight: Any = 0.0,
    meta: Any = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: Any = None,
) -> int:
    target = stored_as(contiguous(out, "out", writable=True), np.uint8)
    tensor, data = _tensor("", array, wire_dtype, residual)
    frame = b"".join(_frame([(tensor, data)], flags, weight, meta, compress, checksum))
    bound = frame_bound(data.size, len(meta))
    if target.size < bound:
        raise ValueError(f"out has {target.size} bytes, the frame may need {bound}")
    refuse_overlap(data, "the array", target, "out")
    target[: len(frame)] = np.frombuffer(frame, np.uint8)
    return len(frame)


# ---- decoding ----


def _limit(max_bytes: Any) -> int | None:
    return None if max_bytes is None else arguments.integer("max_bytes", max_bytes)


def read_header(frame: Any, *, max_bytes: Any = None) -> Header:
    return Frame(frame, _limit(max_bytes), verify=False).header


def verify(frame: Any, *, max_bytes: Any = None) -> Header:
    opened = Frame(frame, _limit(max_bytes), verify=True)
    opened.verify()
    return opened.header


def _widens(tensor: TensorInfo, target: memoryview) -> bool:
    """Check that a tensor fits; return whether its halves become float32."""
    form = item_format(target)
    if form == "f" and tensor.dtype in ("fp16", "bf16"):
        if target.nbytes != 4 * tensor.count:
            raise FrameFormatError(
                f"the frame holds {tensor.count} elements, {target.nbytes // 4} were expected"
            )
        return True
    if form != "B" and form not in frame_header.FORMATS[tensor.dtype]:
        raise FrameFormatError(f"the frame holds {tensor.dtype}, out has items of format {form!r}")
    if target.nbytes != tensor.nbytes:
        raise FrameFormatError(
            f"the frame holds {tensor.nbytes} bytes, {target.nbytes} were expected"
        )
    return False


def decode_into(frame: Any, out: Any, *, verify: bool = True, threads: Any = 1) -> Header:
    arguments.threads(threads)
    view = contiguous(out, "out", writable=True)
    opened = Frame(frame, view.nbytes, verify)
    tensor = opened.header.only
    wide = _widens(tensor, view)
    target = stored_as(view, np.uint8)
    refuse_overlap(opened.data, "a frame", target, "out")
    opened.verify()
    if wide:
        target[:] = widen(opened.decode_stored(tensor)).view(np.uint8)
    else:
        target[:] = opened.decode(tensor, 0)
    return opened.header


def decode_add(
    frame: Any, out: Any, *, scale: Any = None, verify: bool = True, threads: Any = 1
) -> Header:
    arguments.threads(threads)
    factor = None if scale is None else arguments.number("scale", scale)
    target = writable_floats(out, "out")
    opened = Frame(frame, target.nbytes, verify)
    check_float(opened.header.only, target.size)
    refuse_overlap(opened.data, "a frame", target, "out")
    opened.verify()
    value = widen(opened.decode_stored(opened.header.only))
    with np.errstate(all="ignore"):
        target += value if factor is None else np.float32(factor) * value
    return opened.header


def decode_tensors(
    frame: Any, *, max_bytes: Any, verify: bool = True, threads: Any = 1
) -> dict[str, Any]:
    arguments.threads(threads)
    opened = Frame(frame, arguments.integer("max_bytes", max_bytes), verify)
    opened.verify()
    arrays: dict[str, Any] = {}
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
    frames: Any,
    out: Any,
    *,
    weights: Any = None,
    scale: Any = None,
    order: Any = "tree",
    verify: bool = True,
    threads: Any = 1,
) -> list[Header]:
    arguments.threads(threads)
    target = writable_floats(out, "out")
    opened: list[Frame] = []
    for i, source in enumerate(arguments.items("frames", "buffers", frames)):
        try:
            opened.append(Frame(source, 4 * target.size, verify))
            check_float(opened[-1].header.only, target.size)
            opened[-1].verify()
        except FrameFormatError as exc:
            raise FrameFormatError(f"frame {i}: {exc}") from None
        if opened[-1].header.dtype != opened[0].header.dtype:
            raise FrameFormatError(
                f"frame {i} holds {opened[-1].header.dtype}, frame 0 holds {opened[0].header.dtype}"
            )
    if not opened:
        raise ValueError("there is no frame to reduce")
    factors = None if weights is None else arguments.weights(weights, len(opened), "frames")
    factor = None if scale is None else arguments.number("scale", scale)
    arguments.choice("order", order, ORDERS)
    for frame in opened:
        refuse_overlap(frame.data, "a frame", target, "out")
    shards = [frame.decode_stored(frame.header.only) for frame in opened]
    target[:] = scaled_sum(shards, factors, factor, order)
    return [frame.header for frame in opened]
