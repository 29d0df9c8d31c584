"""Tensors to frames and back: bit-exact, checksummed, in chunks of 64 KB.

    encode, encode_tensors   a list of buffers for a scatter-gather send; dense data is not copied
    encode_into              one contiguous frame
    read_header              what a frame says about itself
    decode_into, decode_add, decode_tensors
    decode_reduce            many frames into their scaled sum, without decoding them first
    FrameReducer             the same bits from frames that arrive one by one, in any order

Frames may come from anyone: what is no frame, damaged, or larger than the receiver allows raises
FrameFormatError, in time and memory bounded by what the receiver allowed.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint64_t

from smlt._core._buffers cimport Memory, number, thread_count, writable_floats
from smlt._core._encoder cimport Encoding, wire_tensor
from smlt._core._frame cimport Frame, check_float
from smlt._core._frame_reduction cimport open_all, reduce_opened
from smlt._core._kernels cimport chunk_count, kernels

from smlt._core import arguments, frame_header
from smlt._core._frame_reduction import FrameReducer
from smlt._core._kernels import use_instruction_set
from smlt._core.frame_header import FrameFormatError, Header, TensorInfo, frame_bound

__all__ = [
    "FrameFormatError", "FrameReducer", "Header", "TensorInfo", "checksum", "decode_add",
    "decode_into", "decode_reduce", "decode_tensors", "encode", "encode_into", "encode_tensors",
    "frame_bound", "read_header", "use_instruction_set", "verify",
]


def checksum(data):
    """Return the XXH3 (64 bits, seed 0) of a buffer's bytes: what frames are checked with."""
    cdef Memory memory = Memory(data, "data", False)
    cdef uint64_t value
    with nogil:
        value = kernels.xxh3(<const uint8_t*>memory.view.buf, memory.view.len)
    return value


# ---- encoding ----


def encode(
    array,
    *,
    wire_dtype=None,
    flags=0,
    weight=0.0,
    meta=b"",
    bint compress=True,
    bint checksum=True,
    residual=None,
):
    """Return a frame of one tensor as a list of buffers, to be sent one after the other.

    Dense data is not copied: the buffers refer to `array`, which must not change until they have
    been sent.

    Args:
        array: a C-contiguous array of float, integer or bool items, of any shape.
        wire_dtype: send a float32 array as "fp16" or "bf16" (round to nearest even), or say that
            a uint16 array holds "bf16".
        flags: unsigned 32-bit mask, for the receiver.
        weight: for the receiver, such as the number of samples behind a gradient.
        meta: at most 1 MiB of the caller's own.
        compress: look for zeros and repeats; what has none goes raw in any case.
        checksum: of the payload; the header always has one. Without it receivers must pass
            verify=False.
        residual: float32 array like `array`: error feedback for a lossy wire_dtype. It is added
            before the rounding and left with what the rounding lost.

    Raises:
        TypeError: not an array, of a dtype that frames do not carry, or a number that is none.
        ValueError: flags, meta, a name, wire_dtype or residual are outside their limits.
        BufferError: the array or the residual is not C-contiguous.
    """
    cdef Encoding frame = Encoding(
        [wire_tensor("", array, wire_dtype, residual)], flags, weight, meta, compress, checksum
    )
    cdef list pieces = frame.pieces()
    return [frame.prefixed(), *pieces]


def encode_tensors(
    tensors,
    *,
    bf16=(),
    flags=0,
    weight=0.0,
    meta=b"",
    bint compress=True,
    bint checksum=True,
):
    """Return one frame of many named tensors, as `encode` does for one.

    Args:
        tensors: name -> array; the order is kept.
        bf16: names of uint16 arrays that hold bf16.

    Raises: as `encode`.
    """
    cdef list pairs = [
        wire_tensor(name, array, "bf16" if brain else None, None)
        for name, array, brain in arguments.named_arrays(tensors, bf16)
    ]
    cdef Encoding frame = Encoding(pairs, flags, weight, meta, compress, checksum)
    cdef list pieces = frame.pieces()
    return [frame.prefixed(), *pieces]


def encode_into(
    array,
    out,
    *,
    wire_dtype=None,
    flags=0,
    weight=0.0,
    meta=b"",
    bint compress=True,
    bint checksum=True,
    residual=None,
):
    """Write a frame of one tensor to `out` and return its length in bytes.

    Args:
        out: writable bytes, at least `frame_bound(nbytes on the wire, len(meta))`.

    Raises: as `encode`; ValueError if out is too small, or overlaps the array.
    """
    cdef Memory target = Memory(out, "out", True)
    cdef Encoding frame = Encoding(
        [wire_tensor("", array, wire_dtype, residual)], flags, weight, meta, compress, checksum
    )
    return frame.write(target)


# ---- decoding ----


def read_header(frame, *, max_bytes=None):
    """Return a frame's header after checking it; the payload is not looked at.

    Args:
        frame: bytes, bytearray, memoryview or a uint8 array.
        max_bytes: refuse tensors larger than this in all; None takes a frame at its own size.

    Raises:
        FrameFormatError: the bytes are no frame, are damaged, or hold more than max_bytes.
    """
    return Frame(frame, _limit(max_bytes), False).header


cdef _limit(max_bytes):
    return None if max_bytes is None else arguments.integer("max_bytes", max_bytes)


def verify(frame, *, max_bytes=None):
    """Check header and payload of a frame without decoding it, and return its header.

    Raises:
        FrameFormatError: as `read_header`, or a chunk's checksum is wrong or missing.
    """
    cdef Frame opened = Frame(frame, _limit(max_bytes), True)
    cdef size_t first = 0
    for tensor in opened.header.tensors:
        opened.verify(tensor, first)
        first += chunk_count(tensor.nbytes)
    return opened.header


def decode_into(frame, out, *, bint verify=True, threads=1):
    """Decode a frame of one tensor into `out` and return its header.

    Args:
        out: writable memory of the tensor's dtype and size, or plain bytes of that size, or a
            float32 array, which fp16 and bf16 are widened to. Its content is undefined if this
            raises.
        verify: False skips the payload's checksum, and takes frames without one.

    Raises:
        FrameFormatError: no frame, a damaged one, or another dtype or size than out.
        ValueError: frame and out overlap in memory.
    """
    cdef int most = thread_count(threads)
    cdef Memory target = Memory(out, "out", True)
    cdef Frame opened = Frame(frame, target.view.len, verify)
    opened.decode(opened.header.only, 0, target, verify, most)
    return opened.header


def decode_add(frame, out, *, scale=None, bint verify=True, threads=1):
    """Add (scale times) a frame's tensor to the float32 array `out` and return the header.

    The whole frame is verified first: if this raises for a checksum, `out` is as it was. A chunk
    whose checksum is right and that still does not decode leaves `out` undefined.

    Raises:
        FrameFormatError: no frame, a damaged one, or not as many fp32, fp16 or bf16 as out.
    """
    cdef int most = thread_count(threads)
    cdef float factor = 1.0 if scale is None else number("scale", scale)
    cdef Memory target = writable_floats(out, "out", -1)
    cdef Frame opened = Frame(frame, target.view.len, verify)
    tensor = opened.header.only
    check_float(tensor, target.view.len // 4)
    opened.decode_add(tensor, target, NULL if scale is None else &factor, verify, most)
    return opened.header


def decode_tensors(frame, *, max_bytes, bint verify=True, threads=1):
    """Return the tensors of a frame as new arrays, by name; bf16 comes as uint16.

    Raises:
        FrameFormatError: no frame, a damaged one, more than max_bytes, or a name twice.
    """
    cdef int most = thread_count(threads)
    cdef Frame opened = Frame(frame, arguments.integer("max_bytes", max_bytes), verify)
    cdef dict arrays = {}
    cdef size_t first = 0
    for tensor in opened.header.tensors:
        if tensor.name in arrays:
            raise FrameFormatError(f"the frame holds the tensor {tensor.name!r} twice")
        array = np.empty(tensor.shape, frame_header.NUMPY_TYPES[tensor.dtype])
        opened.decode(tensor, first, Memory(array.reshape(-1).view(np.uint8), "out", True), verify, most)
        arrays[tensor.name] = array
        first += chunk_count(tensor.nbytes)
    return arrays


def decode_reduce(
    frames,
    out,
    *,
    weights=None,
    scale=None,
    order="tree",
    bint verify=True,
    threads=1,
):
    """Set out = scale * sum_i weights[i] * decode(frames[i]) and return the headers.

    The bits are those of decoding every frame and calling `shard_reduce.reduce`. Raw chunks are
    read in place, the others decoded chunk by chunk into the cache, zero chunks skipped.

    Args:
        frames: n frames of one tensor each, of len(out) elements and of one dtype: fp32, fp16
            or bf16.
        out: writable float32 array; must not overlap the frames. Its content is undefined if
            this raises.
        weights, scale, order, threads: as for `shard_reduce.reduce`.

    Raises:
        FrameFormatError: a frame is none, is damaged, or does not fit; names it by its index.
    """
    cdef int most = thread_count(threads)
    cdef Memory target = writable_floats(out, "out", -1)
    cdef list opened = open_all(frames, target.view.len // 4, verify)
    reduce_opened(opened, target, weights, scale, order, verify, most)
    return [frame.header for frame in opened]
