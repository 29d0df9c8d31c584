"""Sum, mean and weighted mean of equal shards, in place, at the speed of memory.

    reduce           n shards into one fp32 array
    reduce_cast      ... into fp16 or bf16 for the wire, with error feedback
    reduce_sgd       ... straight into an SGD step on the shard's parameters
    reduce_adamw     ... straight into an AdamW step
    StreamReducer    the same bits as `reduce`, from shards that arrive one by one, in any order

The arithmetic is C over vectors (`lanes.h`, `reduction.h`); here the arguments are checked once
and the GIL is released once.
"""

import math

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport uint8_t, uint16_t, uintptr_t
from libc.stdlib cimport free, malloc

from smlt._core._buffers cimport acquire, item_format


cdef extern from "reduction.h" nogil:
    enum: GROUP
    enum: FP32
    enum: FP16
    enum: BF16
    enum: FOLD
    enum: TREE
    enum: DOUBLE
    enum: STORE
    enum: CAST
    enum: SGD
    enum: ADAMW

    ctypedef struct sgd_rule:
        float lr, momentum, weight_decay, take
        int nesterov

    ctypedef struct adamw_rule:
        float shrink, rest1, beta2, rest2, step_size, root_correction, eps

    ctypedef struct stream_weights:
        const float* narrow
        const double* wide

    ctypedef struct reduction:
        const uint8_t** in_ "in"
        size_t streams, count
        int dtype, order, finish
        stream_weights weights
        const double* scale
        float* out
        uint16_t* wire
        int wire_dtype
        float* residual
        float* param
        float* first
        float* second
        sgd_rule sgd
        adamw_rule adamw
        double* norms
        uint8_t* rooms
        size_t room

    ctypedef struct group_step:
        float* dst
        const float* left
        double* wide
        const uint8_t** in_ "in"
        stream_weights weights
        int k, dtype, tree
        size_t count
        const double* scale
        uint8_t* rooms

    ctypedef struct lane_kernels:
        const char* name

    const lane_kernels* lanes
    int choose_lanes(const char* name)
    void plan_reduction(reduction* job)
    size_t reduction_blocks(const reduction* job)
    int reduction_threads(const reduction* job, int asked)
    void run_reduction(reduction* job, int threads)
    size_t group_room(int threads)
    int group_threads(const group_step* step, int asked)
    void run_group(group_step* step, int threads)
    void round_wide(float* dst, const double* wide, double scale, size_t n)


DTYPES = ("fp32", "fp16", "bf16")
ORDERS = ("fold", "tree", "fp64")


def instruction_set():
    """Return the name of the kernels in use: "avx2" or "baseline"."""
    return (<bytes>lanes.name).decode()


def use_instruction_set(str name):
    """Choose the kernels by name, for tests and benchmarks; all give the same bits.

    Raises:
        ValueError: this machine does not have them.
    """
    if not choose_lanes(name.encode()):
        raise ValueError(f"this machine has no {name!r} kernels")


cnp.import_array()

if not choose_lanes(b"avx2"):
    choose_lanes(b"baseline")


cdef int _dtype_code(str dtype) except -1:
    if dtype == "fp32":
        return FP32
    if dtype == "fp16":
        return FP16
    if dtype == "bf16":
        return BF16
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


cdef int _order_code(str order) except -1:
    if order == "tree":
        return TREE
    if order == "fold":
        return FOLD
    if order == "fp64":
        return DOUBLE
    raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")


cdef int _checked_threads(int threads) except -1:
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return threads


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class _Output:
    """A writable buffer of `count` items of one format, held for the length of a call."""

    cdef Py_buffer view
    cdef bint held
    cdef Py_ssize_t count
    cdef str name

    def __cinit__(self, target, str name, int item, Py_ssize_t count):
        acquire(target, &self.view, True, name)
        self.held = True
        self.name = name
        cdef char form = item_format(&self.view)
        if item == 4 and form != c"f":
            raise TypeError(f"{name} must be float32")
        if item == 2 and form != c"H" and form != c"e":
            raise TypeError(f"{name} must be uint16 or float16")
        self.count = self.view.len // item
        if count >= 0 and self.count != count:
            raise ValueError(f"{name} has {self.count} elements, not {count}")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef float* floats(self) noexcept:
        return <float*>self.view.buf


cdef bint _overlap(const Py_buffer* a, const Py_buffer* b) noexcept:
    cdef uintptr_t x = <uintptr_t>a.buf, y = <uintptr_t>b.buf
    return x < y + <uintptr_t>b.len and y < x + <uintptr_t>a.len


cdef int _refuse_overlap(list outputs) except -1:
    cdef _Output a, b
    cdef Py_ssize_t i, j
    for i in range(len(outputs)):
        for j in range(i):
            a = outputs[i]
            b = outputs[j]
            if _overlap(&a.view, &b.view):
                raise ValueError(f"{a.name} and {b.name} overlap in memory")
    return 0


@cython.final
@cython.freelist(8)
cdef class _Inputs:
    """The shards and weights of one call, held until it returns."""

    cdef Py_buffer* views
    cdef const uint8_t** pointers
    cdef float* narrow
    cdef double* wide
    cdef Py_ssize_t streams, held
    cdef int dtype

    def __cinit__(self, shards, Py_ssize_t count, dtype, weights):
        cdef list sources = shards if type(shards) is list else list(shards)
        cdef Py_ssize_t i, n = len(sources)
        if n == 0:
            raise ValueError("there is no shard to reduce")
        cdef size_t each = sizeof(Py_buffer) + sizeof(void*) + sizeof(double) + sizeof(float)
        self.views = <Py_buffer*>malloc(n * each)
        if self.views == NULL:
            raise MemoryError()
        self.pointers = <const uint8_t**>(self.views + n)
        self.wide = <double*>(self.pointers + n)
        self.narrow = <float*>(self.wide + n)
        self.streams = n
        self.dtype = -1 if dtype is None else _dtype_code(dtype)
        for i in range(n):
            acquire(sources[i], &self.views[i], False, "a shard")
            self.held += 1
            self.check(i, count)
            self.pointers[i] = <const uint8_t*>self.views[i].buf
        if weights is None:
            self.wide = NULL
            self.narrow = NULL
        else:
            self.take_weights(list(weights))

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        free(self.views)

    cdef int take_weights(self, list weights) except -1:
        cdef Py_ssize_t i
        if len(weights) != self.streams:
            raise ValueError(f"{len(weights)} weights for {self.streams} shards")
        for i in range(self.streams):
            self.wide[i] = weights[i]
            self.narrow[i] = <float>self.wide[i]
        return 0

    cdef int check(self, Py_ssize_t i, Py_ssize_t count) except -1:
        cdef Py_buffer* view = &self.views[i]
        cdef char form = item_format(view)
        if self.dtype < 0:
            self.dtype = _inferred(form, view.len, count)
        cdef bint raw = form == c"B" or form == c"b" or form == c"c"
        if self.dtype == FP32 and not raw and form != c"f":
            raise TypeError(f"shard {i} has items of format {chr(form)!r}, fp32 was expected")
        if self.dtype == FP16 and not raw and form != c"e" and form != c"H":
            raise TypeError(f"shard {i} has items of format {chr(form)!r}, fp16 was expected")
        if self.dtype == BF16 and not raw and form != c"H":
            raise TypeError(f"shard {i} has items of format {chr(form)!r}, bf16 was expected")
        if view.len != count * (4 if self.dtype == FP32 else 2):
            raise ValueError(
                f"shard {i} has {view.len} bytes, {count} elements of {DTYPES[self.dtype]} were "
                "expected"
            )
        return 0

    cdef int refuse_overlap(self, _Output output, bint may_be_same) except -1:
        cdef Py_ssize_t i
        for i in range(self.streams):
            if not _overlap(&self.views[i], &output.view):
                continue
            if may_be_same and self.dtype == FP32 and self.views[i].buf == output.view.buf:
                continue
            raise ValueError(f"shard {i} and {output.name} overlap in memory")
        return 0


cdef int _inferred(char form, Py_ssize_t nbytes, Py_ssize_t count) except -1:
    if form == c"f":
        return FP32
    if form == c"e":
        return FP16
    if form == c"H":
        raise TypeError("uint16 shards may be fp16 or bf16: say which with dtype=")
    if nbytes == 2 * count and count:
        raise TypeError("two bytes an element may be fp16 or bf16: say which with dtype=")
    return FP32


cdef object _run(reduction* job, _Inputs inputs, str order, scale, int threads, bint norm):
    cdef double factor = 1.0 if scale is None else scale
    cdef size_t blocks, b
    cdef double total = 0.0
    job.in_ = inputs.pointers
    job.streams = inputs.streams
    job.dtype = inputs.dtype
    job.order = _order_code(order)
    job.weights.narrow = inputs.narrow
    job.weights.wide = inputs.wide
    job.scale = NULL if scale is None else &factor
    threads = reduction_threads(job, _checked_threads(threads))
    plan_reduction(job)
    blocks = reduction_blocks(job)
    cdef size_t room = job.room * threads + (8 * blocks if norm else 0)
    job.rooms = <uint8_t*>malloc(room) if room else NULL
    if room and job.rooms == NULL:
        raise MemoryError()
    job.norms = <double*>(job.rooms + job.room * threads) if norm else NULL
    with nogil:
        run_reduction(job, threads)
        if norm:
            for b in range(blocks):
                total += job.norms[b]
        free(job.rooms)
    return total if norm else None


def reduce(
    shards,
    out,
    *,
    str dtype=None,
    weights=None,
    scale=None,
    str order="tree",
    int threads=1,
    bint norm=False,
):
    """Set out = scale * sum_i weights[i] * shards[i].

    Args:
        shards: n buffers of len(out) elements each: arrays, or raw bytes at any alignment. One of
            them may be `out` itself, if both are float32.
        out: writable float32 array.
        dtype: "fp32", "fp16" or "bf16"; taken from the buffers where they say it. bf16 comes as
            uint16.
        weights: n factors, rounded to float32 (kept as float64 in the order "fp64").
        scale: applied once, after the sum; 1/n gives the mean.
        order: "fold" gives the bits of a NumPy loop; "tree" (a binary tree over shards) grows
            errors with log n and composes: trees of aligned powers of two are subtrees; "fp64"
            folds in float64 and rounds once.
        threads: at most so many; each gets at least 1 MB of input.
        norm: also return the squared L2 norm of out, in float64, from the same pass. It is not
            finite exactly when an element of out is not.

    Raises:
        TypeError: a buffer's items are not of the dtype, or the dtype cannot be told.
        ValueError: lengths differ, a name is unknown, or memory overlaps otherwise than allowed.
        BufferError: a buffer is not contiguous, or out is read-only.
    """
    cdef _Output target = _Output(out, "out", 4, -1)
    cdef _Inputs inputs = _Inputs(shards, target.count, dtype, weights)
    inputs.refuse_overlap(target, True)
    cdef reduction job
    job.finish = STORE
    job.count = target.count
    job.out = target.floats()
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_cast(
    shards,
    out,
    *,
    str wire_dtype,
    residual=None,
    str dtype=None,
    weights=None,
    scale=None,
    str order="tree",
    int threads=1,
    bint norm=False,
):
    """Reduce as `reduce` does and round the result to fp16 or bf16 for the wire.

    With a residual (float32, updated in place) the sum is corrected by what earlier calls lost:
    t = mean + residual, out = round(t), residual = t - out (error feedback, Seide et al. 2014;
    Karimireddy et al. 2019). Where out is not finite, the residual restarts at zero. The norm
    is that of the mean before rounding.

    Args:
        out: writable uint16 or float16 array. Rounding is to nearest even; NaNs stay NaNs.

    Raises: as `reduce`.
    """
    cdef _Output target = _Output(out, "out", 2, -1)
    cdef _Inputs inputs = _Inputs(shards, target.count, dtype, weights)
    cdef _Output loss
    cdef reduction job
    job.finish = CAST
    job.count = target.count
    job.wire = <uint16_t*>target.view.buf
    job.wire_dtype = _dtype_code(wire_dtype)
    job.residual = NULL
    if job.wire_dtype == FP32:
        raise ValueError("wire_dtype must be fp16 or bf16; reduce() gives fp32")
    inputs.refuse_overlap(target, False)
    if residual is not None:
        loss = _Output(residual, "residual", 4, target.count)
        inputs.refuse_overlap(loss, False)
        _refuse_overlap([target, loss])
        job.residual = loss.floats()
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_sgd(
    shards,
    param,
    momentum_buffer=None,
    *,
    double lr,
    double momentum=0.0,
    double dampening=0.0,
    double weight_decay=0.0,
    bint nesterov=False,
    bint first_step=False,
    str dtype=None,
    weights=None,
    scale=None,
    str order="tree",
    int threads=1,
    bint norm=False,
):
    """Reduce to a gradient g and take torch.optim.SGD's step on `param` with it, in one pass.

    Args:
        param: writable float32 array, updated in place.
        momentum_buffer: float32, zero before the first step; needed if momentum is not 0.
        first_step: leave out the dampening, as torch does when it makes the buffer.

    Returns:
        The squared norm of g if `norm`, else None.

    Raises: as `reduce`.
    """
    cdef _Output target = _Output(param, "param", 4, -1)
    cdef _Inputs inputs = _Inputs(shards, target.count, dtype, weights)
    cdef _Output velocity
    cdef reduction job
    job.finish = SGD
    job.count = target.count
    job.param = target.floats()
    job.first = NULL
    job.sgd.lr = <float>lr
    job.sgd.momentum = <float>momentum
    job.sgd.weight_decay = <float>weight_decay
    job.sgd.take = 1.0 if first_step else <float>(1.0 - dampening)
    job.sgd.nesterov = nesterov
    inputs.refuse_overlap(target, False)
    if momentum_buffer is not None:
        velocity = _Output(momentum_buffer, "momentum_buffer", 4, target.count)
        inputs.refuse_overlap(velocity, False)
        _refuse_overlap([target, velocity])
        job.first = velocity.floats()
    elif momentum != 0.0:
        raise ValueError("momentum needs a momentum_buffer")
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_adamw(
    shards,
    param,
    exp_avg,
    exp_avg_sq,
    *,
    int step,
    double lr=1e-3,
    betas=(0.9, 0.999),
    double eps=1e-8,
    double weight_decay=1e-2,
    str dtype=None,
    weights=None,
    scale=None,
    str order="tree",
    int threads=1,
    bint norm=False,
):
    """Reduce to a gradient g and take torch.optim.AdamW's step on `param` with it, in one pass.

    Args:
        param, exp_avg, exp_avg_sq: writable float32 arrays, updated in place; the moments are
            zero before the first step.
        step: 1 for the first step, as torch counts after its increment.

    Returns:
        The squared norm of g if `norm`, else None.

    Raises: as `reduce`.
    """
    cdef _Output target = _Output(param, "param", 4, -1)
    cdef _Output first = _Output(exp_avg, "exp_avg", 4, target.count)
    cdef _Output second = _Output(exp_avg_sq, "exp_avg_sq", 4, target.count)
    cdef _Inputs inputs = _Inputs(shards, target.count, dtype, weights)
    cdef double beta1, beta2
    cdef reduction job
    # Unpacked, not indexed: indices are not checked in a release build.
    beta1, beta2 = betas
    if step < 1:
        raise ValueError(f"step counts from 1, not {step}")
    job.finish = ADAMW
    job.count = target.count
    job.param = target.floats()
    job.first = first.floats()
    job.second = second.floats()
    job.adamw.shrink = <float>(1.0 - lr * weight_decay)
    job.adamw.rest1 = <float>(1.0 - beta1)
    job.adamw.beta2 = <float>beta2
    job.adamw.rest2 = <float>(1.0 - beta2)
    job.adamw.step_size = <float>(lr / (1.0 - beta1 ** step))
    job.adamw.root_correction = <float>math.sqrt(1.0 - beta2 ** step)
    job.adamw.eps = <float>eps
    for output in (target, first, second):
        inputs.refuse_overlap(output, False)
    _refuse_overlap([target, first, second])
    return _run(&job, inputs, order, scale, threads, norm)


cdef int _add_group(
    float[::1] dst, float[::1] left, double[::1] wide, _Inputs inputs, int order, scale, int threads
) except -1:
    """Set dst = scale * (left + sum of up to eight shards), or add them to wide."""
    cdef group_step step
    cdef double factor = 1.0 if scale is None else scale
    step.count = dst.shape[0] if dst is not None else wide.shape[0]
    if step.count == 0:
        return 0
    step.dst = &dst[0] if dst is not None else NULL
    step.left = &left[0] if left is not None else NULL
    step.wide = &wide[0] if wide is not None else NULL
    step.in_ = inputs.pointers
    step.weights.narrow = inputs.narrow
    step.weights.wide = inputs.wide
    step.k = <int>inputs.streams
    step.dtype = inputs.dtype
    step.tree = order == TREE
    step.scale = NULL if scale is None else &factor
    threads = group_threads(&step, threads)
    step.rooms = <uint8_t*>malloc(group_room(threads))
    if step.rooms == NULL:
        raise MemoryError()
    with nogil:
        run_group(&step, threads)
        free(step.rooms)
    return 0


class StreamReducer:
    """Reduces shards that arrive one by one, in any order, to the bits of `reduce`.

    A shard is referred to, not copied, until the group of eight that it belongs to is complete:
    its memory must not change before `add` has returned its index. Fed in order, a tree holds at
    most seven shards and log2(world_size) partial sums. `finish` makes it ready for the next step.
    """

    def __init__(
        self,
        count,
        world_size,
        *,
        dtype=None,
        weights=None,
        order="tree",
        threads=1,
    ):
        """Prepare to reduce `world_size` shards of `count` elements each.

        Raises:
            ValueError: world_size is not positive, or an option is unknown.
        """
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}")
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        self._count = count
        self._world_size = world_size
        self._dtype = dtype
        self._weights = None if weights is None else [float(w) for w in weights]
        if weights is not None and len(self._weights) != world_size:
            raise ValueError(f"{len(self._weights)} weights for {world_size} shards")
        if dtype is not None:
            _dtype_code(dtype)
        self._order = _order_code(order)
        self._threads = _checked_threads(threads)
        self._spare = []
        self._wide = None
        self._begin()

    def _begin(self):
        self._seen = [False] * self._world_size
        self._missing = self._world_size
        self._held = {}
        self._next = 0  # fold: the first index not yet added
        self._partials = {}  # tree: (level, index) -> sum of that complete subtree

    @property
    def missing(self):
        """The indices that have not been added yet."""
        return [i for i, seen in enumerate(self._seen) if not seen]

    @property
    def held(self):
        """The indices of shards still referred to."""
        return sorted(self._held)

    @property
    def partial_count(self):
        """How many partial sums of `count` elements are in memory."""
        return len(self._partials) + (self._order != TREE and self._next > 0)

    def add(self, index, shard):
        """Add shard number `index` and return the indices whose memory is free again.

        Raises:
            ValueError: the index is outside the world or has been added, or a length differs.
            TypeError: the shard's items are not of the dtype.
        """
        if not 0 <= index < self._world_size:
            raise ValueError(f"shard {index} is outside a world of {self._world_size}")
        if self._seen[index]:
            raise ValueError(f"shard {index} has been added already")
        _Inputs([shard], self._count, self._dtype, None)
        self._seen[index] = True
        self._missing -= 1
        self._held[index] = shard
        if self._missing == 0:
            return []  # finish() adds the last group straight into its output
        if self._order == TREE:
            return self._add_leaves(index // GROUP)
        return self._add_prefix()

    def finish(self, out, scale=None):
        """Write scale * sum to `out` (float32, `count` elements) and begin anew.

        Raises:
            ValueError: shards are missing, or out has another length.
        """
        if self._missing:
            raise ValueError(
                f"{self._missing} of {self._world_size} shards are missing: {self.missing[:8]}"
            )
        _Output(out, "out", 4, self._count)
        # One-dimensional and typed, whatever the shape of out.
        flat = memoryview(out).cast("B").cast("f") if self._count else np.empty(0, np.float32)
        if self._order == TREE:
            self._finish_tree(flat, scale)
        else:
            self._finish_fold(flat, scale)
        self._begin()

    # ---- fold and fp64: the prefix in index order ----

    def _add_prefix(self):
        """Add whole groups of eight from the front: the kernel reads eight streams best."""
        freed = []
        while all(self._next + i in self._held for i in range(GROUP)):
            freed += self._add_run(GROUP, None, None)
        return freed

    def _add_run(self, size, out, scale):
        indices = list(range(self._next, self._next + size))
        inputs = self._inputs(indices)
        if self._order == DOUBLE:
            if self._wide is None:
                self._wide = np.empty(self._count, np.float64)
            if self._next == 0:
                self._wide.fill(-0.0)  # the number that changes no other, not even -0.0
            _add_group(None, None, self._wide, inputs, DOUBLE, None, self._threads)
        else:
            if 0 not in self._partials:
                self._partials[0] = self._take()
            left = self._partials[0] if self._next else None
            target = self._partials[0] if out is None else out
            _add_group(target, left, None, inputs, FOLD, scale, self._threads)
        self._next += size
        return self._release(indices)

    def _finish_fold(self, out, scale):
        while self._held:
            size = min(GROUP, self._world_size - self._next)
            last = self._next + size == self._world_size
            self._add_run(size, out if last else None, scale if last else None)
        if self._order == DOUBLE:
            _round_wide(out, self._wide, 1.0 if scale is None else scale)
        else:
            self._spare += self._partials.values()

    # ---- tree: subtrees as they become complete ----

    def _leaves(self, group):
        return range(GROUP * group, min(GROUP * (group + 1), self._world_size))

    def _add_leaves(self, group):
        indices = [i for i in self._leaves(group) if i in self._held]
        if len(indices) < len(self._leaves(group)):
            return []
        self._climb(group, self._inputs(indices), None, None)
        return self._release(indices)

    def _climb(self, index, inputs, out, scale):
        """Add a complete leaf group and merge upwards as long as the sibling is complete.

        With `out` given, all siblings are: the last merge goes there and takes the scale.
        """
        siblings, level = self._complete_siblings(index)
        last = len(siblings) - 1
        total = None
        for step in range(max(len(siblings), 1)):
            ends = out is not None and step >= last
            sibling = self._partials.pop(siblings[step]) if siblings else None
            target = out if ends else total if total is not None else sibling
            if target is None:
                target = self._take()
            if step == 0:
                _add_group(target, sibling, None, inputs, TREE, scale if ends else None, self._threads)
            else:
                pair = _Inputs([total], self._count, "fp32", None)
                _add_group(target, sibling, None, pair, TREE, scale if ends else None, self._threads)
            self._recycle(sibling, total, target)
            total = target
        if out is None:
            self._partials[level] = total

    def _complete_siblings(self, index):
        """Return the keys of the subtrees to merge with, from the leaf up, and the key reached."""
        width = -(-self._world_size // GROUP)
        siblings = []
        level = 0
        while width > 1:
            sibling = index ^ 1
            if sibling < width:  # else the tree's right edge: nothing to wait for
                if (level, sibling) not in self._partials:
                    break
                siblings.append((level, sibling))
            index >>= 1
            level += 1
            width = (width + 1) // 2
        return siblings, (level, index)

    def _finish_tree(self, out, scale):
        (group,) = {index // GROUP for index in self._held}
        self._climb(group, self._inputs(sorted(self._held)), out, scale)

    # ---- buffers ----

    def _inputs(self, indices):
        weights = None if self._weights is None else [self._weights[i] for i in indices]
        return _Inputs([self._held[i] for i in indices], self._count, self._dtype, weights)

    def _release(self, indices):
        for index in indices:
            del self._held[index]
        return indices

    def _take(self):
        return self._spare.pop() if self._spare else np.empty(self._count, np.float32)

    def _recycle(self, sibling, total, target):
        for buffer in (sibling, total):
            if buffer is not None and buffer is not target:
                self._spare.append(buffer)


cdef int _round_wide(float[::1] out, double[::1] wide, double scale) except -1:
    if out.shape[0]:
        with nogil:
            round_wide(&out[0], &wide[0], scale, out.shape[0])
    return 0
