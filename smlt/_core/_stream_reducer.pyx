"""Shards into their sum as they arrive, in any order, with the bits of the batch form."""

import numpy as np

cimport numpy as cnp

from smlt._core._buffers cimport (
    Memory,
    Shards,
    dtype_code,
    number,
    order_code,
    thread_count,
    writable_floats,
)
from smlt._core._kernels cimport DOUBLE, FOLD, GROUP, TREE, group_step, kernels

from smlt._core import arguments
from smlt._core._buffers import DTYPES

cnp.import_array()


cdef int _add_group(
    float[::1] dst, float[::1] left, double[::1] wide, Shards inputs, int order, scale, int threads
) except -1:
    """Set dst = scale * (left + sum of up to eight shards), or add them to wide."""
    cdef group_step step
    cdef double factor = 1.0 if scale is None else scale
    cdef int done
    step.count = dst.shape[0] if dst is not None else wide.shape[0]
    if step.count == 0:
        return 0
    step.dst = &dst[0] if dst is not None else NULL
    step.left = &left[0] if left is not None else NULL
    step.wide = &wide[0] if wide is not None else NULL
    step.in_ = inputs.pointers
    step.weights.narrow = inputs.weights.narrow
    step.weights.wide = inputs.weights.wide
    step.k = <int>inputs.count
    step.dtype = inputs.dtype
    step.tree = order == TREE
    step.scale = NULL if scale is None else &factor
    with nogil:
        done = kernels.add_group(&step, threads)
    if not done:
        raise MemoryError()
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
            TypeError: a number is none.
            ValueError: world_size is not positive, or an option is unknown.
        """
        self._count = arguments.integer("count", count, 0, arguments.MAX_COUNT)
        self._world_size = arguments.integer("world_size", world_size, 1, arguments.MAX_WORLD)
        self._dtype = None if dtype is None else DTYPES[dtype_code(dtype)]
        self._weights = None
        if weights is not None:
            self._weights = arguments.weights(weights, self._world_size, "shards")
        self._order = order_code(order)
        self._threads = thread_count(threads)
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
            TypeError: the shard's items are not of the dtype, which the first shard decides where
                it was not given.
        """
        index = arguments.integer("index", index)
        if index >= self._world_size:
            raise ValueError(f"shard {index} is outside a world of {self._world_size}")
        if self._seen[index]:
            raise ValueError(f"shard {index} has been added already")
        cdef Shards one = Shards([shard], self._count, self._dtype, None)
        self._dtype = DTYPES[one.dtype]
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
            ValueError: shards are missing, out has another length, or it overlaps the memory of a
                shard otherwise than being that shard.
        """
        if self._missing:
            raise ValueError(
                f"{self._missing} of {self._world_size} shards are missing: {self.missing[:8]}"
            )
        cdef Memory target = writable_floats(out, "out", self._count)
        cdef Shards held = self._inputs(sorted(self._held))
        held.refuse_overlap(target, True)
        factor = None if scale is None else number("scale", scale)
        # One-dimensional and typed, whatever the shape of out.
        flat = memoryview(out).cast("B").cast("f") if self._count else np.empty(0, np.float32)
        if self._order == TREE:
            self._finish_tree(flat, factor)
        else:
            self._finish_fold(flat, factor)
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
                pair = Shards([total], self._count, "fp32", None)
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
        return Shards([self._held[i] for i in indices], self._count, self._dtype, weights)

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
            kernels.round_double(&out[0], &wide[0], scale, out.shape[0])
    return 0
