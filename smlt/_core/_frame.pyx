"""Open a frame that anyone may have sent: check everything that later code relies on.

After `Frame(...)` has returned, every chunk lies inside the frame, has a size that its mode
allows, and belongs to a tensor of known dtype; all tensors together are no larger than the
receiver said. The msgpack header is read by a strict reader of just its own shape, so neither
depth nor lengths that lie can cost more than the header's own size.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

cimport numpy as cnp

from smlt._core._buffers cimport acquire

from smlt._core import frame_header
from smlt._core.frame_header import FrameFormatError, Header, TensorInfo


cdef extern from "frames.h" nogil:
    enum: CHUNK
    enum: RAW
    enum: ZERO
    enum: LZ4
    enum: BITMAP
    uint64_t xxh3(const uint8_t* p, size_t n)
    size_t chunk_count(size_t bytes)
    size_t chunk_bytes(size_t bytes, size_t chunk)
    uint32_t read32(const uint8_t* p)
    int entry_mode(uint32_t entry)
    size_t entry_size(uint32_t entry)
    int choose_lanes(const char* name)


cnp.import_array()

if not choose_lanes(b"avx2"):
    choose_lanes(b"baseline")


cdef int _malformed(str what) except -1:
    raise FrameFormatError(f"the frame's header is malformed: {what}")


cdef uint64_t _big_endian(Reader* r, size_t size) except? 0:
    cdef uint64_t value = 0
    cdef size_t i
    if <size_t>(r.end - r.at) < size:
        _malformed("it ends too early")
    for i in range(size):
        value = value << 8 | r.at[i]
    r.at += size
    return value


cdef uint64_t _read_uint(Reader* r) except? 0:
    cdef uint8_t tag = <uint8_t>_big_endian(r, 1)
    if tag < 0x80:
        return tag
    if 0xCC <= tag <= 0xCF:
        return _big_endian(r, <size_t>1 << (tag - 0xCC))
    _malformed("a length or a flag is not an unsigned integer")
    return 0


cdef double _read_double(Reader* r) except? 0:
    cdef uint64_t bits
    cdef double value
    if _big_endian(r, 1) != 0xCB:
        _malformed("the weight is not a float64")
    bits = _big_endian(r, 8)
    memcpy(&value, &bits, 8)
    return value


cdef size_t _read_size(Reader* r, uint8_t fixed, uint8_t fixed_bits, uint8_t first, size_t least,
                       str what) except? 0:
    """Read the length of a string, bin or array: a fix form or 1 << k bytes, `least` at first."""
    cdef uint8_t tag = <uint8_t>_big_endian(r, 1)
    if fixed_bits and (tag >> fixed_bits) == (fixed >> fixed_bits):
        return tag & ((1 << fixed_bits) - 1)
    cdef int k = tag - first
    if 0 <= k and least << k <= 4:
        return _big_endian(r, least << k)
    _malformed(f"{what} was expected")
    return 0


cdef bytes _read_bin(Reader* r, size_t limit, str what):
    cdef size_t size = _read_size(r, 0, 0, 0xC4, 1, what)
    if size > limit or size > <size_t>(r.end - r.at):
        _malformed(f"{what} has {size} bytes")
    cdef bytes value = PyBytes_FromStringAndSize(<char*>r.at, size)
    r.at += size
    return value


cdef str _read_str(Reader* r, size_t limit, str what):
    cdef size_t size = _read_size(r, 0xA0, 5, 0xD9, 1, what)
    if size > limit or size > <size_t>(r.end - r.at):
        _malformed(f"{what} has {size} bytes")
    cdef const char* text = <const char*>r.at
    r.at += size
    try:
        return PyUnicode_DecodeUTF8(text, size, NULL)
    except UnicodeDecodeError:
        _malformed(f"{what} is not UTF-8")


cdef size_t _read_array(Reader* r, size_t limit, str what) except? 0:
    cdef size_t size = _read_size(r, 0x90, 4, 0xDC, 2, what)
    if size > limit:
        _malformed(f"{what} has {size} items")
    return size


cdef object _read_tensor(Reader* r):
    if _read_array(r, 3, "a tensor") != 3:
        _malformed("a tensor needs name, dtype and shape")
    cdef str name = _read_str(r, frame_header.MAX_NAME, "a tensor's name")
    cdef str dtype = _read_str(r, 16, "a tensor's dtype")
    cdef size_t _, dims = _read_array(r, frame_header.MAX_DIMS, "a shape")
    cdef list shape = []
    for _ in range(dims):
        shape.append(_read_uint(r))
    tensor = TensorInfo(name, dtype, tuple(shape))
    frame_header.check_tensor(tensor)
    return tensor


cdef int _expect_key(Reader* r, str key) except -1:
    if _read_str(r, 16, "a key") != key:
        _malformed(f"the key {key!r} was expected")
    return 0


cdef class Frame:
    """A frame's memory, held; its header; and where its chunks lie."""

    def __cinit__(self, source, max_bytes, bint verify):
        acquire(source, &self.view, False, "a frame")
        self.held = True
        cdef size_t size = self.view.len
        cdef const uint8_t* base = <const uint8_t*>self.view.buf
        cdef size_t start = _payload_start(base, size, frame_header.header_limit(max_bytes))
        cdef uint64_t length
        memcpy(&length, base + 16, 8)
        cdef Reader reader
        reader.at = base + <size_t>frame_header.PREFIX.size
        reader.end = reader.at + length
        self.read_fields(&reader)
        if reader.at != reader.end:
            _malformed("bytes follow its end")
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
        self.checked = len(self.sums) > 0 or chunks == 0
        if verify and not self.checked:
            raise FrameFormatError("the frame carries no checksum of its payload")
        self.locate_chunks(chunks)

    def __dealloc__(self):
        free(self.offsets)
        if self.held:
            PyBuffer_Release(&self.view)

    cdef int read_fields(self, Reader* r) except -1:
        if _big_endian(r, 1) != 0x80 + 6:
            _malformed("a map of six was expected")
        _expect_key(r, "tensors")
        cdef size_t _, count = _read_array(r, frame_header.MAX_TENSORS, "the list of tensors")
        cdef list tensors = []
        for _ in range(count):
            tensors.append(_read_tensor(r))
        _expect_key(r, "flags")
        cdef uint64_t flags = _read_uint(r)
        if flags >> 32:
            _malformed("flags has more than 32 bits")
        _expect_key(r, "weight")
        cdef double weight = _read_double(r)
        _expect_key(r, "meta")
        meta = _read_bin(r, frame_header.MAX_META, "meta")
        _expect_key(r, "chunks")
        self.entries = _read_bin(r, r.end - r.at, "the chunk table")
        _expect_key(r, "sums")
        self.sums = _read_bin(r, r.end - r.at, "the checksum table")
        self.header = Header(tuple(tensors), flags, weight, meta)
        return 0

    cdef int locate_chunks(self, size_t chunks) except -1:
        """Find each chunk's place in the payload; refuse sizes that their modes do not allow."""
        cdef size_t total = self.header.nbytes
        if len(self.sums) and <size_t>len(self.sums) != 8 * chunks:
            _malformed("the checksum table does not fit the tensors")
        if len(self.entries):
            if <size_t>len(self.entries) != 4 * chunks:
                _malformed("the chunk table does not fit the tensors")
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
    if xxh3(base + hashed, start - hashed) != claimed:
        raise FrameFormatError("the checksum of the frame's header is wrong")
    return start
