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

from libc.stdint cimport uint16_t

from smlt._core._buffers cimport (
    Memory,
    Shards,
    dtype_code,
    number,
    order_code,
    refuse_overlap,
    thread_count,
    writable_floats,
    writable_halves,
)
from smlt._core._kernels cimport ADAMW, CAST, SGD, STORE, kernels, reduction

from smlt._core import arguments
from smlt._core._buffers import DTYPES, ORDERS
from smlt._core._kernels import instruction_set, use_instruction_set
from smlt._core._stream_reducer import StreamReducer

__all__ = [
    "DTYPES", "ORDERS", "StreamReducer", "instruction_set", "reduce", "reduce_adamw",
    "reduce_cast", "reduce_sgd", "use_instruction_set",
]


cdef object _run(reduction* job, Shards shards, order, scale, threads, bint norm):
    cdef double factor = 1.0 if scale is None else number("scale", scale)
    cdef double squared = 0.0
    cdef int most = thread_count(threads), done
    job.in_ = shards.pointers
    job.streams = shards.count
    job.dtype = shards.dtype
    job.order = order_code(order)
    job.weights.narrow = shards.weights.narrow
    job.weights.wide = shards.weights.wide
    job.scale = NULL if scale is None else &factor
    with nogil:
        done = kernels.reduce(job, most, &squared if norm else NULL)
    if not done:
        raise MemoryError()
    return squared if norm else None


def reduce(
    shards,
    out,
    *,
    dtype=None,
    weights=None,
    scale=None,
    order="tree",
    threads=1,
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
        TypeError: a buffer's items are not of the dtype, the dtype cannot be told, or a number is
            none.
        ValueError: lengths differ, a name is unknown, or memory overlaps otherwise than allowed.
        BufferError: a buffer is not contiguous, or out is read-only.
    """
    cdef Memory target = writable_floats(out, "out", -1)
    cdef Shards inputs = Shards(shards, target.view.len // 4, dtype, weights)
    inputs.refuse_overlap(target, True)
    cdef reduction job
    job.finish = STORE
    job.count = target.view.len // 4
    job.out = <float*>target.view.buf
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_cast(
    shards,
    out,
    *,
    wire_dtype,
    residual=None,
    dtype=None,
    weights=None,
    scale=None,
    order="tree",
    threads=1,
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
    cdef Memory target = writable_halves(out, "out")
    cdef Py_ssize_t count = target.view.len // 2
    cdef Memory loss = None
    arguments.choice("wire_dtype", wire_dtype, DTYPES[1:])
    if residual is not None:
        loss = writable_floats(residual, "residual", count)
    cdef Shards inputs = Shards(shards, count, dtype, weights)
    cdef reduction job
    job.finish = CAST
    job.count = count
    job.wire = <uint16_t*>target.view.buf
    job.wire_dtype = dtype_code(wire_dtype)
    job.residual = NULL
    inputs.refuse_overlap(target, False)
    if loss is not None:
        inputs.refuse_overlap(loss, False)
        refuse_overlap(target, loss)
        job.residual = <float*>loss.view.buf
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_sgd(
    shards,
    param,
    momentum_buffer=None,
    *,
    lr,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    bint nesterov=False,
    bint first_step=False,
    dtype=None,
    weights=None,
    scale=None,
    order="tree",
    threads=1,
    bint norm=False,
):
    """Reduce to a gradient g and take torch.optim.SGD's step on `param` with it, in one pass.

    Args:
        param: writable float32 array, updated in place.
        momentum_buffer: float32, zero before the first step; needed if momentum is not 0, and left
            alone if it is.
        lr, momentum, weight_decay: not negative.
        nesterov: only with momentum, and without dampening.
        first_step: leave out the dampening, as torch does when it makes the buffer.

    Returns:
        The squared norm of g if `norm`, else None.

    Raises: as `reduce`.
    """
    cdef double rate = arguments.not_negative("lr", lr)
    cdef double keep = arguments.not_negative("momentum", momentum)
    cdef double damp = number("dampening", dampening)
    cdef double decay = arguments.not_negative("weight_decay", weight_decay)
    if nesterov and (keep == 0.0 or damp != 0.0):
        raise ValueError("nesterov needs momentum, and no dampening")
    if momentum_buffer is None and keep != 0.0:
        raise ValueError("momentum needs a momentum_buffer")
    cdef Memory target = writable_floats(param, "param", -1)
    cdef Py_ssize_t count = target.view.len // 4
    cdef Memory velocity = None
    if momentum_buffer is not None:
        velocity = writable_floats(momentum_buffer, "momentum_buffer", count)
    cdef Shards inputs = Shards(shards, count, dtype, weights)
    cdef reduction job
    job.finish = SGD
    job.count = count
    job.param = <float*>target.view.buf
    job.first = NULL
    job.sgd.lr = <float>rate
    job.sgd.momentum = <float>keep
    job.sgd.weight_decay = <float>decay
    job.sgd.take = 1.0 if first_step else <float>(1.0 - damp)
    job.sgd.nesterov = nesterov
    inputs.refuse_overlap(target, False)
    if velocity is not None:
        inputs.refuse_overlap(velocity, False)
        refuse_overlap(target, velocity)
        if keep != 0.0:
            job.first = <float*>velocity.view.buf
    return _run(&job, inputs, order, scale, threads, norm)


def reduce_adamw(
    shards,
    param,
    exp_avg,
    exp_avg_sq,
    *,
    step,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    dtype=None,
    weights=None,
    scale=None,
    order="tree",
    threads=1,
    bint norm=False,
):
    """Reduce to a gradient g and take torch.optim.AdamW's step on `param` with it, in one pass.

    Args:
        param, exp_avg, exp_avg_sq: writable float32 arrays, updated in place; the moments are
            zero before the first step.
        step: 1 for the first step, as torch counts after its increment.
        lr, eps, weight_decay: not negative.
        betas: two numbers from 0 to below 1.

    Returns:
        The squared norm of g if `norm`, else None.

    Raises: as `reduce`.
    """
    count_of_steps = arguments.integer("step", step, 1, 1 << 53)
    cdef double rate = arguments.not_negative("lr", lr)
    cdef double beta1, beta2
    beta1, beta2 = arguments.betas(betas)
    cdef double least = arguments.not_negative("eps", eps)
    cdef double decay = arguments.not_negative("weight_decay", weight_decay)
    cdef double power = count_of_steps
    cdef Memory target = writable_floats(param, "param", -1)
    cdef Py_ssize_t count = target.view.len // 4
    cdef Memory first = writable_floats(exp_avg, "exp_avg", count)
    cdef Memory second = writable_floats(exp_avg_sq, "exp_avg_sq", count)
    cdef Shards inputs = Shards(shards, count, dtype, weights)
    cdef reduction job
    job.finish = ADAMW
    job.count = count
    job.param = <float*>target.view.buf
    job.first = <float*>first.view.buf
    job.second = <float*>second.view.buf
    job.adamw.shrink = <float>(1.0 - rate * decay)
    job.adamw.rest1 = <float>(1.0 - beta1)
    job.adamw.beta2 = <float>beta2
    job.adamw.rest2 = <float>(1.0 - beta2)
    job.adamw.step_size = <float>(rate / (1.0 - beta1 ** power))
    job.adamw.root_correction = <float>math.sqrt(1.0 - beta2 ** power)
    job.adamw.eps = <float>least
    for output in (target, first, second):
        inputs.refuse_overlap(output, False)
    refuse_overlap(target, first)
    refuse_overlap(target, second)
    refuse_overlap(first, second)
    return _run(&job, inputs, order, scale, threads, norm)
