"""One frame being made: what its tensors become on the wire, and the chunks they are cut into."""

import lz4.block
import numpy as np

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from smlt._core._buffers cimport Memory, dtype_code, refuse_overlap, writable_floats
from smlt._core._kernels cimport (
    CHUNK,
    RAW,
    chunk_count,
    chunk_encoder,
    entry_mode,
    entry_size,
    kernels,
)

from smlt._core import arguments, frame_header
from smlt._core._buffers import DTYPES
from smlt._core.frame_header import TensorInfo

cnp.import_array()


cdef tuple wire_tensor(name, array, wire_dtype, residual):
    """Return what goes on the wire: its description and its bytes."""
    plain = frame_header.plain_array(array, f"tensor {name!r}" if name else "the array")
    dtype = frame_header.DTYPE_OF[plain.dtype.str]
    wanted = dtype if wire_dtype is None or wire_dtype == dtype else wire_dtype
    if wanted == dtype:
        if residual is not None:
            raise ValueError("a residual needs a wire_dtype that loses something: fp16 or bf16")
    elif arguments.choice("wire_dtype", wanted, DTYPES) and dtype == "fp32":
        plain = _cast(plain, wanted, residual)
    elif dtype != "uint16" or wanted != "bf16" or residual is not None:
        raise TypeError(f"an array of {dtype} cannot be sent as {wanted}")
    return TensorInfo(name, wanted, plain.shape), plain.reshape(-1).view(np.uint8)


cdef _cast(array, wire_dtype, residual):
    cdef cnp.ndarray wire = np.empty(array.shape, np.uint16)
    cdef Memory source = Memory(array, "the array", False)
    cdef Memory loss
    cdef size_t count = array.size
    cdef int code = dtype_code(wire_dtype)
    cdef uint16_t* target = <uint16_t*>cnp.PyArray_DATA(wire)
    cdef float* lost = NULL
    if residual is not None:
        loss = writable_floats(residual, "residual", count)
        refuse_overlap(source, loss)
        lost = <float*>loss.view.buf
    with nogil:
        kernels.cast(target, lost, <const float*>source.view.buf, count, code)
    return wire


@cython.final
cdef class Encoding:
    """One frame being made: the tensors, their chunk table and their checksums."""

    def __cinit__(self, list pairs, flags, weight, meta, bint compress, bint checksum):
        cdef size_t c = 0
        self.tensors = [tensor for tensor, _ in pairs]
        self.sources = [source for _, source in pairs]
        self.header = frame_header.sendable(tuple(self.tensors), flags, weight, meta)
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
            room = kernels.probe_chunks(&e)
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
            frame_header.MAGIC, frame_header.VERSION, _checksum(hashed), len(fields)
        ) + hashed[8:]

    cdef size_t encode_tensor(self, chunk_encoder* e, size_t i) except? 0:
        """Encode the chunks of tensor i at e.dst; returns how much of it they took."""
        cdef size_t c = 0, n = chunk_count(e.bytes)
        cdef bytes compressed
        while True:
            with nogil:
                c = kernels.encode_chunks(e, c)
            if c == n:
                return e.used
            chunk = self.sources[i][c * CHUNK:(c + 1) * CHUNK]
            compressed = lz4.block.compress(chunk, store_size=False)
            kernels.store_smallest(e, c, <const uint8_t*>PyBytes_AS_STRING(compressed), len(compressed))
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

    cdef size_t write(self, Memory out) except 0:
        """Write the whole frame to `out`."""
        cdef size_t i, first = 0, length = len(self.pack_fields())
        cdef size_t used = frame_header.PREFIX.size + length + frame_header.padding(length)
        cdef size_t bound = frame_header.frame_bound(self.header.nbytes, len(self.header.meta))
        cdef uint8_t* target = <uint8_t*>out.view.buf
        cdef chunk_encoder e
        if <size_t>out.view.len < bound:
            raise ValueError(f"out has {out.view.len} bytes, the frame may need {bound}")
        for source in self.sources:
            refuse_overlap(Memory(source, "the array", False), out)
        for i in range(len(self.sources)):
            e = self.encoder(i, first)
            e.dst = target + used
            e.copy_raw = True
            used += self.encode_tensor(&e, i)
            first += chunk_count(e.bytes)
        cdef bytes head = self.prefixed()
        memcpy(target, PyBytes_AS_STRING(head), len(head))
        return used


cdef uint64_t _checksum(bytes data) noexcept:
    return kernels.xxh3(<const uint8_t*>PyBytes_AS_STRING(data), len(data))
