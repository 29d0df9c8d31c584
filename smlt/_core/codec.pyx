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

import lz4.block
import numpy as np

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from smlt._core._buffers cimport acquire, item_format
from smlt._core._frame cimport Frame

from smlt._core import frame_header
from smlt._core.frame_header import FrameFormatError, Header, TensorInfo
from smlt._core.shard_reduce import DTYPES, ORDERS, StreamReducer


cdef extern from "frames.h" nogil:
    enum: FP32
    enum: FP16
    enum: BF16
    enum: FOLD
    enum: TREE
    enum: DOUBLE
    enum: FINE
    enum: BAD_CHECKSUM
    enum: BAD_CHUNK
    enum: CHUNK
    enum: RAW

    ctypedef struct stream_weights:
        const float* narrow
        const double* wide

    ctypedef struct chunk_encoder:
        const uint8_t* src
        size_t bytes
        int word
        uint32_t* entries
        uint64_t* sums
        uint8_t* dst
        size_t used
        int copy_raw

    ctypedef struct frame_part:
        const uint8_t* payload
        size_t payload_bytes
        const uint8_t* entries
        const uint8_t* sums
        const uint64_t* offsets
        size_t first, bytes
        int word

    ctypedef struct frame_fault:
        int kind
        size_t frame, chunk

    ctypedef struct decode_job:
        const frame_part* part
        uint8_t* dst
        float* wide
        int add, wire_dtype
        const float* scale
        uint8_t* rooms

    ctypedef struct frame_reduction:
        const frame_part* parts
        size_t streams, count
        int dtype, order, skip_zeros
        stream_weights weights
        const double* scale
        float* out
        uint8_t* rooms
        size_t room

    uint64_t xxh3(const uint8_t* p, size_t n)
    size_t chunk_count(size_t bytes)
    size_t chunk_bytes(size_t bytes, size_t chunk)
    int entry_mode(uint32_t entry)
    size_t entry_size(uint32_t entry)
    size_t probe_chunks(chunk_encoder* e)
    size_t encode_chunks(chunk_encoder* e, size_t c)
    void store_smallest(chunk_encoder* e, size_t c, const uint8_t* compressed, size_t size)
    frame_fault verify_part(const frame_part* part)
    int worthwhile_threads(int asked, size_t bytes, size_t least)
    frame_fault run_decode(decode_job* job, int threads)
    size_t frame_reduction_room(const frame_reduction* job)
    int frame_reduction_threads(const frame_reduction* job, int asked)
    frame_fault run_frame_reduction(frame_reduction* job, int threads)
    void cast_tensor(uint16_t* wire, float* residual, const float* x, size_t count, int dtype)
    int choose_lanes(const char* name)
    size_t THREAD_BYTES


def use_instruction_set(str name):
    """Choose the codec's kernels by name, for tests and benchmarks; all give the same bytes.

    Raises:
        ValueError: this machine does not have them.
    """
    if not choose_lanes(name.encode()):
        raise ValueError(f"this machine has no {name!r} kernels")


cnp.import_array()

if not choose_lanes(b"avx2"):
    choose_lanes(b"baseline")


cdef dict _DTYPE_OF = {
    np.dtype(code).str: name for name, code in frame_header.NUMPY_TYPES.items() if name != "bf16"
}


def checksum(data):
    """Return the XXH3 (64 bits, seed 0) of a buffer's bytes: what frames are checked with."""
    cdef Py_buffer view
    acquire(data, &view, False, "data")
    cdef uint64_t value
    try:
        with nogil:
            value = xxh3(<const uint8_t*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return value


# ---- encoding ----


cdef _plain(array, str what):
    """Return an array as NumPy sees it, without a copy."""
    try:
        plain = np.asarray(array, copy=False)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{what} is a {type(array).__name__}, not an array: {exc}") from None
    if not plain.flags.c_contiguous:
        raise BufferError(f"{what} must be C-contiguous")
    if plain.dtype.str not in _DTYPE_OF:
        raise TypeError(f"{what} has dtype {plain.dtype}, which frames do not carry")
    return plain


cdef _flat_bytes(array):
    return array.reshape(-1).view(np.uint8)


cdef tuple _tensor(str name, array, wire_dtype, residual):
    """Return what goes on the wire: its description and its bytes."""
    plain = _plain(array, f"tensor {name!r}" if name else "the array")
    dtype = _DTYPE_OF[plain.dtype.str]
    if wire_dtype is None or wire_dtype == dtype:
        if residual is not None:
            raise ValueError("a residual needs a wire_dtype that loses something: fp16 or bf16")
    elif wire_dtype not in DTYPES:
        raise ValueError(f"wire_dtype must be one of {', '.join(DTYPES)}, not {wire_dtype!r}")
    elif dtype == "fp32":
        plain = _cast(plain, wire_dtype, residual)
        dtype = wire_dtype
    elif dtype == "uint16" and wire_dtype == "bf16" and residual is None:
        dtype = "bf16"
    else:
        raise TypeError(f"an array of {dtype} cannot be sent as {wire_dtype}")
    return TensorInfo(name, dtype, plain.shape), _flat_bytes(plain)


cdef _cast(array, str wire_dtype, residual):
    wire = np.empty(array.shape, np.uint16)
    cdef const float[::1] source = array.reshape(-1)
    cdef uint16_t[::1] target = wire.reshape(-1)
    cdef float[::1] loss = None
    cdef int code = FP16 if wire_dtype == "fp16" else BF16
    cdef Py_ssize_t count = source.shape[0]
    if residual is not None:
        if not residual.flags.c_contiguous:
            raise BufferError("residual must be C-contiguous")  # a copy of it would be updated
        loss = residual.reshape(-1)
        if loss.shape[0] != count:
            raise ValueError(f"residual has {loss.shape[0]} elements, not {count}")
        if np.shares_memory(residual, array):
            raise ValueError("residual and the array overlap in memory")
    if count:
        with nogil:
            cast_tensor(&target[0], &loss[0] if loss is not None else NULL, &source[0], count, code)
    return wire


@cython.final
cdef class _Encoding:
    """One frame being made: the tensors, their chunk table and their checksums."""

    cdef list tensors, sources
    cdef size_t chunks, room
    cdef uint32_t[::1] entries
    cdef uint64_t[::1] sums
    cdef object header, scratch

    def __cinit__(self, list pairs, flags, weight, meta, bint compress, bint checksum):
        cdef size_t c = 0
        self.tensors = [tensor for tensor, _ in pairs]
        self.sources = [source for _, source in pairs]
        self.header = Header(tuple(self.tensors), flags, weight, meta)
        frame_header.check_sendable(self.header)
        for source in self.sources:
            self.chunks += chunk_count(len(source))
        self.entries = np.empty(self.chunks, np.uint32)
        self.sums = np.empty(self.chunks if checksum else 0, np.uint64)
        for i in range(len(self.sources)):
            c = self.probe_tensor(i, c, compress)

    cdef chunk_encoder encoder(self, size_t i, size_t first) except *:
        """Return an encoder for tensor i, whose first chunk is `first`."""
        cdef const uint8_t[::1] source = self.sources[i]
        cdef chunk_encoder e
        e.bytes = source.shape[0]
        e.src = &source[0] if e.bytes else NULL
        e.word = 2 if frame_header.ITEM_BYTES[self.tensors[i].dtype] == 2 else 4
        e.entries = &self.entries[first] if e.bytes else NULL
        e.sums = &self.sums[first] if e.bytes and self.sums.shape[0] else NULL
        e.dst = NULL
        e.used = 0
        e.copy_raw = False
        return e

    cdef size_t probe_tensor(self, size_t i, size_t first, bint compress) except? 0:
        cdef chunk_encoder e = self.encoder(i, first)
        cdef size_t room
        if not compress:
            e.word = 0
        with nogil:
            room = probe_chunks(&e)
        self.room += room
        return first + chunk_count(e.bytes)

    cdef bytes pack_fields(self):
        """Pack the header; all-raw payloads need no chunk table."""
        entries = bytes(self.entries) if self.room else b""
        return frame_header.pack_fields(self.header, entries, bytes(self.sums))

    cdef bytes prefixed(self):
        """Return the frame up to its payload."""
        cdef bytes fields = self.pack_fields()
        cdef bytes hashed = b"".join((
            len(fields).to_bytes(8, "little"), fields, bytes(frame_header.padding(len(fields)))
        ))
        return frame_header.PREFIX.pack(
            frame_header.MAGIC, frame_header.VERSION, checksum(hashed), len(fields)
        ) + hashed[8:]

    cdef size_t encode_tensor(self, chunk_encoder* e, size_t i) except? 0:
        """Encode the chunks of tensor i at e.dst; returns how much of it they took."""
        cdef size_t c = 0, n = chunk_count(e.bytes)
        cdef bytes compressed
        while True:
            with nogil:
                c = encode_chunks(e, c)
            if c == n:
                return e.used
            chunk = self.sources[i][c * CHUNK:(c + 1) * CHUNK]
            compressed = lz4.block.compress(chunk, store_size=False)
            store_smallest(e, c, <const uint8_t*>PyBytes_AS_STRING(compressed), len(compressed))
            c += 1

    cdef list pieces(self):
        """Return the payload as buffers: slices of the tensors, and what had to be encoded."""
        # Untouched pages of the scratch are never backed by memory.
        self.scratch = np.empty(self.room, np.uint8)
        cdef uint8_t[::1] room = self.scratch
        cdef list pieces = []
        cdef size_t i, first = 0, used = 0
        cdef chunk_encoder e
        for i in range(len(self.sources)):
            e = self.encoder(i, first)
            e.dst = &room[used] if used < self.room else NULL
            self.encode_tensor(&e, i)
            self.append_pieces(pieces, &e, self.sources[i], used)
            used += e.used
            first += chunk_count(e.bytes)
        return pieces

    cdef int append_pieces(self, list pieces, chunk_encoder* e, source, size_t used) except -1:
        cdef size_t c = 0, start, size, n = chunk_count(e.bytes)
        while c < n:
            start = c
            while c < n and entry_mode(e.entries[c]) == RAW:
                c += 1
            if c > start:
                pieces.append(memoryview(source[start * CHUNK:c * CHUNK]))
            size = 0
            while c < n and entry_mode(e.entries[c]) != RAW:
                size += entry_size(e.entries[c])
                c += 1
            if size:
                pieces.append(memoryview(self.scratch[used:used + size]))
            used += size
        return 0

    cdef size_t write(self, uint8_t[::1] out) except 0:
        """Write the whole frame to `out`."""
        cdef size_t i, first = 0, length = len(self.pack_fields())
        cdef size_t used = frame_header.PREFIX.size + length + frame_header.padding(length)
        cdef size_t bound = used
        for source in self.sources:
            bound += len(source)
        if <size_t>out.shape[0] < bound:
            raise ValueError(f"out has {out.shape[0]} bytes, the frame may need {bound}")
        cdef chunk_encoder e
        for i in range(len(self.sources)):
            e = self.encoder(i, first)
            e.dst = &out[0] + used
            e.copy_raw = True
            used += self.encode_tensor(&e, i)
            first += chunk_count(e.bytes)
        cdef bytes head = self.prefixed()
        memcpy(&out[0], PyBytes_AS_STRING(head), len(head))
        return used


def encode(
    array,
    *,
    wire_dtype=None,
    flags=0,
    double weight=0.0,
    bytes meta=b"",
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
        TypeError: not an array, or of a dtype that frames do not carry.
        ValueError: flags, meta, wire_dtype or residual are outside their limits.
        BufferError: the array is not C-contiguous.
    """
    cdef _Encoding frame = _Encoding(
        [_tensor("", array, wire_dtype, residual)], flags, weight, meta, compress, checksum
    )
    cdef list pieces = frame.pieces()
    return [frame.prefixed(), *pieces]


def encode_tensors(
    tensors,
    *,
    bf16=(),
    flags=0,
    double weight=0.0,
    bytes meta=b"",
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
        _tensor(name, array, "bf16" if name in bf16 else None, None)
        for name, array in tensors.items()
    ]
    cdef _Encoding frame = _Encoding(pairs, flags, weight, meta, compress, checksum)
    cdef list pieces = frame.pieces()
    return [frame.prefixed(), *pieces]


def encode_into(
    array,
    out,
    *,
    wire_dtype=None,
    flags=0,
    double weight=0.0,
    bytes meta=b"",
    bint compress=True,
    bint checksum=True,
    residual=None,
):
    """Write a frame of one tensor to `out` and return its length in bytes.

    Args:
        out: writable bytes, at least `frame_bound(nbytes on the wire, len(meta))`.

    Raises: as `encode`; ValueError if out is too small.
    """
    cdef _Encoding frame = _Encoding(
        [_tensor("", array, wire_dtype, residual)], flags, weight, meta, compress, checksum
    )
    cdef uint8_t[::1] target = memoryview(out).cast("B")
    return frame.write(target)


def frame_bound(nbytes, meta_bytes=0):
    """Return the most bytes that a frame of one tensor of `nbytes` takes."""
    chunks = -(-nbytes // CHUNK)
    return nbytes + 12 * chunks + meta_bytes + 1024


# ---- decoding ----


cdef int _word(str dtype) except -1:
    return 2 if frame_header.ITEM_BYTES[dtype] == 2 else 4


cdef frame_part _part(Frame frame, size_t first, size_t nbytes, int word, bint verify) noexcept:
    cdef frame_part part
    part.payload = frame.payload
    part.payload_bytes = frame.payload_bytes
    part.entries = <const uint8_t*>PyBytes_AS_STRING(frame.entries) if frame.entries else NULL
    part.sums = <const uint8_t*>PyBytes_AS_STRING(frame.sums) if verify and frame.sums else NULL
    part.offsets = frame.offsets
    part.first = first
    part.bytes = nbytes
    part.word = word
    return part


cdef int _raise_fault(frame_fault fault, size_t first, str where) except -1:
    if fault.kind == BAD_CHECKSUM:
        raise FrameFormatError(f"the checksum of chunk {first + fault.chunk}{where} is wrong")
    if fault.kind == BAD_CHUNK:
        raise FrameFormatError(f"chunk {first + fault.chunk}{where} does not decode to its size")
    return 0


@cython.final
cdef class _Target:
    """The memory that one tensor is decoded to, held for the length of a call."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self, out):
        acquire(out, &self.view, True, "out")
        self.held = True

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef bint widens(self, tensor) except -1:
        """Check that a tensor fits; return whether its halves become float32."""
        cdef char form = item_format(&self.view)
        dtype = tensor.dtype
        if form == c"f" and dtype in ("fp16", "bf16"):
            if self.view.len != 4 * tensor.count:
                raise FrameFormatError(
                    f"the frame holds {tensor.count} elements, {self.view.len // 4} were expected"
                )
            return True
        if form != c"B" and not _same_kind(form, dtype):
            raise FrameFormatError(
                f"the frame holds {dtype}, out has items of format {chr(form)!r}"
            )
        if self.view.len != tensor.nbytes:
            raise FrameFormatError(
                f"the frame holds {tensor.nbytes} bytes, {self.view.len} were expected"
            )
        return False


cdef dict _FORMATS = {
    "fp32": b"f", "fp16": b"eH", "bf16": b"H", "fp64": b"d", "bool": b"?",
    "int8": b"b", "int16": b"h", "int32": b"il", "int64": b"lq",
    "uint8": b"B", "uint16": b"H", "uint32": b"IL", "uint64": b"LQ",
}


cdef bint _same_kind(char form, str dtype) except -1:
    return <int>form in _FORMATS[dtype]


cdef int _run_decode(decode_job* job, size_t first, int threads) except -1:
    cdef frame_fault fault
    threads = worthwhile_threads(threads, job.part.bytes, THREAD_BYTES)
    job.rooms = <uint8_t*>malloc(<size_t>CHUNK * threads)
    if job.rooms == NULL:
        raise MemoryError()
    with nogil:
        fault = run_decode(job, threads)
        free(job.rooms)
    return _raise_fault(fault, first, "")


cdef int _decode_part(Frame frame, tensor, size_t first, out, bint verify, int threads) except -1:
    cdef _Target target = _Target(out)
    cdef bint widen = target.widens(tensor)
    cdef frame_part part = _part(frame, first, tensor.nbytes, _word(tensor.dtype), verify)
    cdef decode_job job
    if part.bytes == 0:
        return 0
    job.part = &part
    job.dst = <uint8_t*>target.view.buf
    job.wide = <float*>target.view.buf if widen else NULL
    job.add = False
    job.scale = NULL
    job.wire_dtype = DTYPES.index(tensor.dtype) if widen else FP32
    return _run_decode(&job, first, threads)


def read_header(frame, *, max_bytes=None):
    """Return a frame's header after checking it; the payload is not looked at.

    Args:
        frame: bytes, bytearray, memoryview or a uint8 array.
        max_bytes: refuse tensors larger than this in all; None takes a frame at its own size.

    Raises:
        FrameFormatError: the bytes are no frame, are damaged, or hold more than max_bytes.
    """
    return Frame(frame, _unlimited(frame) if max_bytes is None else max_bytes, False).header


cdef _unlimited(frame):
    """Return what a frame could possibly decode to: a chunk for every four bytes of table."""
    return memoryview(frame).nbytes * CHUNK


def verify(frame, *, max_bytes=None):
    """Check header and payload of a frame without decoding it, and return its header.

    Raises:
        FrameFormatError: as `read_header`, or a chunk's checksum is wrong or missing.
    """
    cdef Frame opened = Frame(frame, _unlimited(frame) if max_bytes is None else max_bytes, True)
    cdef size_t first = 0
    for tensor in opened.header.tensors:
        _verify_part(_part(opened, first, tensor.nbytes, 4, True), first)
        first += chunk_count(tensor.nbytes)
    return opened.header


cdef int _verify_part(frame_part part, size_t first) except -1:
    cdef frame_fault fault
    with nogil:
        fault = verify_part(&part)
    return _raise_fault(fault, first, "")


def decode_into(frame, out, *, bint verify=True, int threads=1):
    """Decode a frame of one tensor into `out` and return its header.

    Args:
        out: writable memory of the tensor's dtype and size, or plain bytes of that size, or a
            float32 array, which fp16 and bf16 are widened to. Its content is undefined if this
            raises.
        verify: False skips the payload's checksum, and takes frames without one.

    Raises:
        FrameFormatError: no frame, a damaged one, or another dtype or size than out.
    """
    cdef Frame opened = Frame(frame, memoryview(out).nbytes, verify)
    _decode_part(opened, opened.header.only, 0, out, verify, threads)
    return opened.header


def decode_add(frame, out, *, scale=None, bint verify=True, int threads=1):
    """Add (scale times) a frame's tensor to the float32 array `out` and return the header.

    The whole frame is verified first: if this raises for a checksum, `out` is as it was. A chunk
    whose checksum is right and that still does not decode leaves `out` undefined.

    Raises:
        FrameFormatError: no frame, a damaged one, or not as many fp32, fp16 or bf16 as out.
    """
    cdef Frame opened = Frame(frame, memoryview(out).nbytes, verify)
    cdef _Target target = _Target(out)
    tensor = opened.header.only
    _check_float(tensor, target.view.len // 4, "")
    if item_format(&target.view) != c"f":
        raise TypeError("out must be float32")
    cdef frame_part part = _part(opened, 0, tensor.nbytes, _word(tensor.dtype), verify)
    if part.bytes == 0:
        return opened.header
    _verify_part(part, 0)
    part.sums = NULL
    cdef float factor = 1.0 if scale is None else scale
    cdef decode_job job
    job.part = &part
    job.dst = NULL
    job.wide = <float*>target.view.buf
    job.add = True
    job.scale = NULL if scale is None else &factor
    job.wire_dtype = DTYPES.index(tensor.dtype)
    _run_decode(&job, 0, threads)
    return opened.header


cdef int _check_float(tensor, count, str where) except -1:
    if tensor.dtype not in DTYPES:
        raise FrameFormatError(f"the frame{where} holds {tensor.dtype}, which cannot be reduced")
    if tensor.count != count:
        raise FrameFormatError(
            f"the frame{where} holds {tensor.count} elements, {count} were expected"
        )
    return 0


def decode_tensors(frame, *, max_bytes, bint verify=True, int threads=1):
    """Return the tensors of a frame as new arrays, by name; bf16 comes as uint16.

    Raises:
        FrameFormatError: no frame, a damaged one, more than max_bytes, or a name twice.
    """
    cdef Frame opened = Frame(frame, max_bytes, verify)
    cdef dict arrays = {}
    cdef size_t first = 0
    for tensor in opened.header.tensors:
        if tensor.name in arrays:
            raise FrameFormatError(f"the frame holds the tensor {tensor.name!r} twice")
        array = np.empty(tensor.shape, frame_header.NUMPY_TYPES[tensor.dtype])
        _decode_part(opened, tensor, first, array.reshape(-1).view(np.uint8), verify, threads)
        arrays[tensor.name] = array
        first += chunk_count(tensor.nbytes)
    return arrays


# ---- decode and reduce ----


cdef list _open_all(frames, Py_ssize_t count, bint verify):
    cdef list opened = []
    cdef Frame frame
    for i, source in enumerate(frames):
        try:
            frame = Frame(source, 4 * count, verify)
            tensor = frame.header.only
            _check_float(tensor, count, "")
        except FrameFormatError as exc:
            raise FrameFormatError(f"frame {i}: {exc}") from None
        if opened and tensor.dtype != opened[0].header.dtype:
            raise FrameFormatError(
                f"frame {i} holds {tensor.dtype}, frame 0 holds {opened[0].header.dtype}"
            )
        opened.append(frame)
    if not opened:
        raise ValueError("there is no frame to reduce")
    return opened


@cython.final
cdef class _Weights:
    cdef float* narrow
    cdef double* wide
    cdef bint positive

    def __cinit__(self, weights, Py_ssize_t n):
        cdef Py_ssize_t i
        self.positive = True
        if weights is None:
            return
        cdef list values = list(weights)
        if len(values) != n:
            raise ValueError(f"{len(values)} weights for {n} frames")
        self.wide = <double*>malloc(n * (sizeof(double) + sizeof(float)))
        if self.wide == NULL:
            raise MemoryError()
        self.narrow = <float*>(self.wide + n)
        for i in range(n):
            self.wide[i] = values[i]
            self.narrow[i] = <float>self.wide[i]
            if not 0.0 <= self.narrow[i] <= 1e30:
                self.positive = False

    def __dealloc__(self):
        free(self.wide)


def decode_reduce(
    frames,
    out,
    *,
    weights=None,
    scale=None,
    str order="tree",
    bint verify=True,
    int threads=1,
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
    cdef _Target target = _Target(out)
    if item_format(&target.view) != c"f":
        raise TypeError("out must be float32")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    cdef Py_ssize_t count = target.view.len // 4
    cdef list opened = _open_all(frames, count, verify)
    headers = [frame.header for frame in opened]
    if count:
        _reduce_opened(opened, headers[0], target, weights, scale, order, verify, threads)
    return headers


cdef int _reduce_opened(
    list opened, header, _Target target, weights, scale, str order, bint verify, int threads
) except -1:
    cdef Py_ssize_t i, n = len(opened)
    cdef _Weights factors = _Weights(weights, n)
    cdef double factor = 1.0 if scale is None else scale
    cdef frame_reduction job
    cdef frame_fault fault
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    cdef frame_part* parts = <frame_part*>malloc(n * sizeof(frame_part))
    if parts == NULL:
        raise MemoryError()
    for i in range(n):
        parts[i] = _part(opened[i], 0, header.nbytes, _word(header.dtype), verify)
    job.parts = parts
    job.streams = n
    job.count = target.view.len // 4
    job.dtype = DTYPES.index(header.dtype)
    job.order = FOLD if order == "fold" else TREE if order == "tree" else DOUBLE
    job.skip_zeros = factors.positive and 0.0 < <float>factor < 1e30
    job.weights.narrow = factors.narrow
    job.weights.wide = factors.wide
    job.scale = NULL if scale is None else &factor
    job.out = <float*>target.view.buf
    threads = frame_reduction_threads(&job, threads)
    job.room = frame_reduction_room(&job)
    job.rooms = <uint8_t*>malloc(job.room * threads)
    if job.rooms == NULL:
        free(parts)
        raise MemoryError()
    with nogil:
        fault = run_frame_reduction(&job, threads)
        free(job.rooms)
        free(parts)
    return _raise_fault(fault, 0, f" of frame {fault.frame}")


class FrameReducer:
    """Reduces frames that arrive one by one, in any order, to the bits of `decode_reduce`.

    Frames whose payload is all raw are reduced where they lie: their memory must not change before
    `add` has returned their index. Others are decoded into memory of the reducer's own at once.
    """

    def __init__(self, count, world_size, *, dtype="fp32", weights=None, order="tree", threads=1):
        """Prepare to reduce `world_size` frames of `count` elements of `dtype` each.

        Raises:
            ValueError: world_size is not positive, or an option is unknown.
        """
        self._stream = StreamReducer(
            count, world_size, dtype=dtype, weights=weights, order=order, threads=threads
        )
        self._count = count
        self._dtype = dtype
        self._spare = []
        self._decoded = {}

    @property
    def missing(self):
        """The indices that have not been added yet."""
        return self._stream.missing

    def add(self, index, frame, *, verify=True):
        """Add frame number `index`; return its header and the indices whose memory is free again.

        Raises:
            FrameFormatError: no frame, a damaged one, or not `count` elements of `dtype`. Nothing
                has been added then: a good copy of the frame may follow.
            ValueError: the index is outside the world or has been added.
        """
        cdef Frame opened = Frame(frame, 4 * self._count, verify)
        tensor = opened.header.only
        _check_float(tensor, self._count, "")
        if tensor.dtype != self._dtype:
            raise FrameFormatError(f"the frame holds {tensor.dtype}, {self._dtype} was expected")
        if opened.entries:
            shard = self._decode(opened, tensor, index, verify)
        else:
            _verify_part(_part(opened, 0, tensor.nbytes, 4, verify), 0)
            shard = memoryview(frame).cast("B")[opened.view.len - opened.payload_bytes:]
        return opened.header, self.add_shard(index, shard)

    def add_shard(self, index, shard):
        """Add shard number `index`, which never was a frame; return the indices free again.

        Args:
            shard: `count` elements of `dtype`, referred to as by `StreamReducer.add`. It may lie
                where `finish` will write the sum.

        Raises: as `StreamReducer.add`.
        """
        freed = self._stream.add(index, shard)
        self._recycle(freed)
        return freed

    def _recycle(self, freed):
        for index in freed:
            if index in self._decoded:
                self._spare.append(self._decoded.pop(index))

    def _decode(self, opened, tensor, index, verify):
        size = tensor.nbytes
        shard = self._spare.pop() if self._spare else np.empty(size, np.uint8)
        _decode_part(opened, tensor, 0, shard, verify, 1)
        self._decoded[index] = shard
        return shard

    def finish(self, out, scale=None):
        """Write scale * sum to `out` (float32, `count` elements) and begin anew.

        Raises:
            ValueError: frames are missing, or out has another length.
        """
        self._stream.finish(out, scale)
        self._spare += self._decoded.values()
        self._decoded.clear()
