"""Frames into their sum: all at once, or as they arrive."""

import numpy as np

from libc.stdlib cimport free, malloc

from smlt._core._buffers cimport (
    Memory,
    Weights,
    dtype_code,
    number,
    order_code,
    refuse_overlap,
)
from smlt._core._frame cimport Frame, check_float, raise_fault
from smlt._core._kernels cimport frame_fault, frame_part, frame_reduction, kernels

from smlt._core import arguments
from smlt._core._buffers import DTYPES
from smlt._core.frame_header import FrameFormatError
from smlt._core._stream_reducer import StreamReducer


cdef list open_all(frames, Py_ssize_t count, bint verify):
    """Open frames of `count` elements and of one dtype."""
    cdef list opened = []
    cdef Frame frame
    for i, source in enumerate(arguments.items("frames", "buffers", frames)):
        try:
            frame = Frame(source, 4 * count, verify)
            tensor = frame.header.only
            check_float(tensor, count)
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


cdef int reduce_opened(
    list opened, Memory out, weights, scale, order, bint verify, int threads
) except -1:
    cdef Py_ssize_t i, n = len(opened)
    cdef Weights factors = Weights(weights, n, "frames")
    cdef double factor = 1.0 if scale is None else number("scale", scale)
    cdef Frame frame = opened[0]
    cdef frame_reduction job
    cdef frame_fault fault
    tensor = frame.header.only
    job.streams = n
    job.count = out.view.len // 4
    job.dtype = dtype_code(tensor.dtype)
    job.order = order_code(order)
    job.skip_zeros = factors.positive and 0.0 < <float>factor < 1e30
    job.weights.narrow = factors.narrow
    job.weights.wide = factors.wide
    job.scale = NULL if scale is None else &factor
    job.out = <float*>out.view.buf
    if job.count == 0:
        return 0
    for frame in opened:
        refuse_overlap(frame.memory, out)
    cdef frame_part* parts = <frame_part*>malloc(n * sizeof(frame_part))
    if parts == NULL:
        raise MemoryError()
    job.parts = parts
    try:
        for i in range(n):
            frame = opened[i]
            parts[i] = frame.part(tensor, 0, verify)
        with nogil:
            fault = kernels.reduce_frames(&job, threads)
    finally:
        free(parts)
    return raise_fault(fault, 0, f" of frame {fault.frame}")


class FrameReducer:
    """Reduces frames that arrive one by one, in any order, to the bits of `decode_reduce`.

    Frames whose payload is all raw are reduced where they lie: their memory must not change before
    `add` has returned their index. Others are decoded into memory of the reducer's own at once.
    """

    def __init__(self, count, world_size, *, dtype="fp32", weights=None, order="tree", threads=1):
        """Prepare to reduce `world_size` frames of `count` elements of `dtype` each.

        Raises:
            TypeError: a number is none.
            ValueError: world_size is not positive, or an option is unknown.
        """
        arguments.choice("dtype", dtype, DTYPES)
        self._stream = StreamReducer(
            count, world_size, dtype=dtype, weights=weights, order=order, threads=threads
        )
        self._count = arguments.integer("count", count)
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
        check_float(tensor, self._count)
        if tensor.dtype != self._dtype:
            raise FrameFormatError(f"the frame holds {tensor.dtype}, {self._dtype} was expected")
        if opened.entries:
            shard = self._decode(opened, tensor, index, verify)
        else:
            if verify:
                opened.verify(tensor, 0)
            shard = memoryview(frame).cast("B")[opened.memory.view.len - opened.payload_bytes:]
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

    def _decode(self, Frame opened, tensor, index, bint verify):
        shard = self._spare.pop() if self._spare else np.empty(tensor.nbytes, np.uint8)
        opened.decode(tensor, 0, Memory(shard, "the shard", True), verify, 1)
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
