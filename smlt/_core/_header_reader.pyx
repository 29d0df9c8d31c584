"""The msgpack header of a frame, read by a strict reader of just its own shape.

Neither depth nor lengths that lie can cost more than the header's own size.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from smlt._core import frame_header
from smlt._core.frame_header import FrameFormatError, Header, TensorInfo


cdef struct Reader:
    const uint8_t* at
    const uint8_t* end


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


cdef tuple read_fields(const uint8_t* start, size_t length):
    """Return the header, its chunk table and its checksum table."""
    cdef Reader reader
    cdef Reader* r = &reader
    reader.at = start
    reader.end = start + length
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
    entries = _read_bin(r, r.end - r.at, "the chunk table")
    _expect_key(r, "sums")
    sums = _read_bin(r, r.end - r.at, "the checksum table")
    if r.at != r.end:
        _malformed("bytes follow its end")
    return Header(tuple(tensors), flags, weight, meta), entries, sums
