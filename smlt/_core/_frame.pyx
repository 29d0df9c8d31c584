"""Open a frame that anyone may have sent: check everything that later code relies on.

After `Frame(...)` has returned, every chunk lies inside the frame, has a size that its mode
allows, and belongs to a tensor of known dtype; all tensors together are no larger than the
receiver said.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from smlt._core._buffers cimport Memory, dtype_code, refuse_overlap
from smlt._core._header_reader cimport read_fields
from smlt._core._kernels cimport (
    BAD_CHECKSUM,
    BAD_CHUNK,
    BITMAP,
    CHUNK,
    FP32,
    NO_MEMORY,
    RAW,
    ZERO,
    chunk_bytes,
    chunk_count,
    decode_job,
    entry_mode,
    entry_size,
    frame_fault,
    frame_part,
    kernels,
    read32,
)

from smlt._core import frame_header
from smlt._core._buffers import DTYPES
from smlt._core.frame_header import FrameFormatError


cdef class Frame:
    """A frame's memory, held; its header; and where its chunks lie.

    `max_bytes` None takes it at its own size. With `verify`, its payload must have checksums.
    """

    def __cinit__(self, source, max_bytes, bint verify):
        self.memory = Memory(source, "a frame", False)
        cdef size_t size = self.memory.view.len
        cdef const uint8_t* base = <const uint8_t*>self.memory.view.buf
        if max_bytes is None:  # what it could possibly decode to: a chunk for each entry of a table
            max_bytes = size * CHUNK
        cdef size_t start = _payload_start(base, size, frame_header.header_limit(max_bytes))
        cdef uint64_t length
        memcpy(&length, base + 16, 8)
        self.header, self.entries, self.sums = read_fields(
            base + <size_t>frame_header.PREFIX.size, length
        )
        if self.header.nbytes > max_bytes:
            raise FrameFormatError(
                f"the frame holds {self.header.nbytes} bytes of tensors, "
                f"at most {max_bytes} were expected"
            )
        self.payload = base + start
        self.payload_bytes = size - start
        cdef size_t chunks = 0
        for tensor in self.header.tensors:
            chunks += chunk_count(tensor.nbytes)
        if verify and chunks and not self.sums:
            raise FrameFormatError("the frame carries no checksum of its payload")
        self.locate_chunks(chunks)

    def __dealloc__(self):
        free(self.offsets)

    cdef int locate_chunks(self, size_t chunks) except -1:
        """Find each chunk's place in the payload; refuse sizes that their modes do not allow."""
        cdef size_t total = self.header.nbytes
        if len(self.sums) and <size_t>len(self.sums) != 8 * chunks:
            raise FrameFormatError(
                "the frame's header is malformed: the checksum table does not fit the tensors"
            )
        if len(self.entries):
            if <size_t>len(self.entries) != 4 * chunks:
                raise FrameFormatError(
                    "the frame's header is malformed: the chunk table does not fit the tensors"
                )
        elif total != self.payload_bytes:
            raise FrameFormatError(
                f"the frame has {self.payload_bytes} bytes of payload, its header promises {total}"
            )
        # Both tables are of the frame's own size, so this cannot be made large by a lie.
        self.offsets = <uint64_t*>malloc(8 * (chunks + 1))
        if self.offsets == NULL:
            raise MemoryError()
        cdef size_t first = 0
        self.offsets[0] = 0
        for tensor in self.header.tensors:
            first = self.locate_tensor(first, tensor.nbytes)
        if self.offsets[chunks] != self.payload_bytes:
            raise FrameFormatError(
                f"the frame has {self.payload_bytes} bytes of payload, "
                f"its header promises {self.offsets[chunks]}"
            )
        return 0

    cdef size_t locate_tensor(self, size_t first, size_t nbytes) except? 0:
        cdef const uint8_t* entries = NULL
        cdef size_t c, raw, size
        cdef uint32_t entry
        cdef int mode
        cdef bint allowed
        if len(self.entries):
            entries = <const uint8_t*>PyBytes_AS_STRING(self.entries)
        for c in range(chunk_count(nbytes)):
            raw = chunk_bytes(nbytes, c)
            size = raw
            if entries != NULL:
                entry = read32(entries + 4 * (first + c))
                mode = entry_mode(entry)
                size = entry_size(entry)
                if mode == RAW:
                    allowed = size == raw
                elif mode == ZERO:
                    allowed = size == 0
                else:
                    allowed = mode <= BITMAP and 0 < size < raw
                if not allowed:
                    raise FrameFormatError(f"chunk {first + c} has mode {mode} and {size} bytes")
            self.offsets[first + c + 1] = self.offsets[first + c] + size
        return first + chunk_count(nbytes)

    cdef frame_part part(self, tensor, size_t first, bint verify):
        """Return the tensor whose first chunk is `first`, as the kernels see it."""
        cdef frame_part part
        part.payload = self.payload
        part.entries = <const uint8_t*>PyBytes_AS_STRING(self.entries) if self.entries else NULL
        part.sums = <const uint8_t*>PyBytes_AS_STRING(self.sums) if verify and self.sums else NULL
        part.offsets = self.offsets
        part.first = first
        part.bytes = tensor.nbytes
        part.word = 2 if frame_header.ITEM_BYTES[tensor.dtype] == 2 else 4
        return part

    cdef int verify(self, tensor, size_t first) except -1:
        """Check the checksums of one tensor's chunks."""
        cdef frame_part part = self.part(tensor, first, True)
        cdef frame_fault fault
        with nogil:
            fault = kernels.verify(&part)
        return raise_fault(fault, first, "")

    cdef int decode(self, tensor, size_t first, Memory out, bint verify, int threads) except -1:
        """Decode one tensor to `out`; halves become float32 where that is what out is."""
        cdef bint widen = _widens(tensor, out)
        cdef frame_part part = self.part(tensor, first, verify)
        cdef decode_job job
        cdef frame_fault fault
        if part.bytes == 0:
            return 0
        refuse_overlap(self.memory, out)
        job.part = &part
        job.dst = <uint8_t*>out.view.buf
        job.wide = <float*>out.view.buf if widen else NULL
        job.add = False
        job.scale = NULL
        job.wire_dtype = dtype_code(tensor.dtype) if widen else FP32
        with nogil:
            fault = kernels.decode(&job, threads)
        return raise_fault(fault, first, "")

    cdef int decode_add(self, tensor, Memory out, const float* scale, bint verify, int threads) except -1:
        """Add the only tensor, times scale, to the float32 of `out`."""
        cdef frame_part part = self.part(tensor, 0, False)
        cdef decode_job job
        cdef frame_fault fault
        if part.bytes == 0:
            return 0
        refuse_overlap(self.memory, out)
        if verify:
            self.verify(tensor, 0)
        job.part = &part
        job.dst = NULL
        job.wide = <float*>out.view.buf
        job.add = True
        job.scale = scale
        job.wire_dtype = dtype_code(tensor.dtype)
        with nogil:
            fault = kernels.decode(&job, threads)
        return raise_fault(fault, 0, "")


cdef int raise_fault(frame_fault fault, size_t first, str where) except -1:
    if fault.kind == BAD_CHECKSUM:
        raise FrameFormatError(f"the checksum of chunk {first + fault.chunk}{where} is wrong")
    if fault.kind == BAD_CHUNK:
        raise FrameFormatError(f"chunk {first + fault.chunk}{where} does not decode to its size")
    if fault.kind == NO_MEMORY:
        raise MemoryError()
    return 0


cdef int check_float(tensor, Py_ssize_t count) except -1:
    """Refuse what cannot be summed, or is not of `count` elements."""
    if tensor.dtype not in DTYPES:
        raise FrameFormatError(f"the frame holds {tensor.dtype}, which cannot be reduced")
    if tensor.count != count:
        raise FrameFormatError(f"the frame holds {tensor.count} elements, {count} were expected")
    return 0


cdef bint _widens(tensor, Memory out) except -1:
    """Check that a tensor fits; return whether its halves become float32."""
    dtype = tensor.dtype
    if out.form == c"f" and dtype in ("fp16", "bf16"):
        if out.view.len != 4 * tensor.count:
            raise FrameFormatError(
                f"the frame holds {tensor.count} elements, {out.view.len // 4} were expected"
            )
        return True
    if out.form != c"B" and chr(out.form) not in frame_header.FORMATS[dtype]:
        raise FrameFormatError(
            f"the frame holds {dtype}, out has items of format {chr(out.form)!r}"
        )
    if out.view.len != tensor.nbytes:
        raise FrameFormatError(
            f"the frame holds {tensor.nbytes} bytes, {out.view.len} were expected"
        )
    return False


cdef size_t _payload_start(const uint8_t* base, size_t size, size_t limit) except 0:
    """Check prefix, lengths and the header's checksum; return where the payload begins."""
    cdef size_t prefix = frame_header.PREFIX.size
    cdef size_t hashed = frame_header.HASHED_FROM
    cdef uint32_t version
    cdef uint64_t length, claimed
    if size < prefix:
        raise FrameFormatError(f"a frame has at least {prefix} bytes, this has {size}")
    if memcmp(base, PyBytes_AS_STRING(frame_header.MAGIC), 4) != 0:
        raise FrameFormatError("the bytes do not begin as a frame does")
    memcpy(&version, base + 4, 4)
    memcpy(&claimed, base + 8, 8)
    memcpy(&length, base + 16, 8)
    if version != <uint32_t>frame_header.VERSION:
        raise FrameFormatError(
            f"the frame has version {version}, this smlt reads {frame_header.VERSION}"
        )
    if length > limit:
        raise FrameFormatError(f"the frame's header claims {length} bytes, the limit is {limit}")
    cdef size_t start = (prefix + length + 63) // 64 * 64
    if start > size:
        raise FrameFormatError(f"the frame ends at byte {size}, inside its header")
    if kernels.xxh3(base + hashed, start - hashed) != claimed:
        raise FrameFormatError("the checksum of the frame's header is wrong")
    return start
