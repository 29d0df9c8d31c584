"""`shard_reduce` in NumPy: same names, same signatures, same bits, none of the speed."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core import arguments
from smlt._core._reference.arithmetic import cast, scaled_sum, squared_norm
from smlt._core._reference.buffers import (
    DTYPES,
    ORDERS,
    Float32,
    checked_shards,
    refuse_overlap,
    refuse_overlap_with_shards,
    writable_floats,
    writable_halves,
)
from smlt._core._reference.stream_reducer import StreamReducer

__all__ = [
    "DTYPES", "ORDERS", "StreamReducer", "instruction_set", "reduce", "reduce_adamw",
    "reduce_cast", "reduce_sgd", "use_instruction_set",
]  # fmt: skip


def instruction_set() -> str:
    """Return the name of the kernels in use."""
    return "numpy"


def use_instruction_set(name: str) -> None:
    """Accept "numpy" and nothing else."""
    if name != "numpy":
        raise ValueError(f"this machine has no {name!r} kernels")


def _reduced(
    shards: Any,
    outputs: dict[str, NDArray[Any]],
    dtype: Any,
    weights: Any,
    scale: Any,
    order: Any,
    threads: Any,
    *,
    may_be_same: bool = False,
) -> Float32:
    named = list(outputs.items())
    arrays, _, factors = checked_shards(shards, named[0][1].size, dtype, weights)
    for n, (name, output) in enumerate(named):
        refuse_overlap_with_shards(arrays, output, name, may_be_same=may_be_same)
        for other, earlier in named[:n]:
            refuse_overlap(earlier, other, output, name)
    factor = None if scale is None else arguments.number("scale", scale)
    arguments.threads(threads)
    return scaled_sum(arrays, factors, factor, arguments.choice("order", order, ORDERS))


def reduce(
    shards: Any,
    out: Any,
    *,
    dtype: Any = None,
    weights: Any = None,
    scale: Any = None,
    order: Any = "tree",
    threads: Any = 1,
    norm: bool = False,
) -> float | None:
    target = writable_floats(out, "out")
    mean = _reduced(
        shards, {"out": target}, dtype, weights, scale, order, threads, may_be_same=True
    )
    target[:] = mean
    return squared_norm(mean) if norm else None


def reduce_cast(
    shards: Any,
    out: Any,
    *,
    wire_dtype: Any,
    residual: Any = None,
    dtype: Any = None,
    weights: Any = None,
    scale: Any = None,
    order: Any = "tree",
    threads: Any = 1,
    norm: bool = False,
) -> float | None:
    target = writable_halves(out, "out")
    arguments.choice("wire_dtype", wire_dtype, DTYPES[1:])
    outputs: dict[str, NDArray[Any]] = {"out": target}
    if residual is not None:
        outputs["residual"] = writable_floats(residual, "residual", target.size)
    mean = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    target[:] = cast(mean, wire_dtype, outputs.get("residual"))
    return squared_norm(mean) if norm else None


def reduce_sgd(
    shards: Any,
    param: Any,
    momentum_buffer: Any = None,
    *,
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    first_step: bool = False,
    dtype: Any = None,
    weights: Any = None,
    scale: Any = None,
    order: Any = "tree",
    threads: Any = 1,
    norm: bool = False,
) -> float | None:
    f = np.float32
    rate = f(arguments.not_negative("lr", lr))
    keep = arguments.not_negative("momentum", momentum)
    damp = arguments.number("dampening", dampening)
    decay = f(arguments.not_negative("weight_decay", weight_decay))
    if nesterov and (keep == 0.0 or damp != 0.0):
        raise ValueError("nesterov needs momentum, and no dampening")
    if momentum_buffer is None and keep != 0.0:
        raise ValueError("momentum needs a momentum_buffer")
    target = writable_floats(param, "param")
    outputs: dict[str, NDArray[Any]] = {"param": target}
    if momentum_buffer is not None:
        outputs["momentum_buffer"] = writable_floats(
            momentum_buffer, "momentum_buffer", target.size
        )
    mean = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    take = f(1.0) if first_step else f(1.0 - damp)
    with np.errstate(all="ignore"):
        grad = mean + decay * target
        if keep != 0.0:
            velocity = outputs["momentum_buffer"]
            velocity[:] = f(keep) * velocity + take * grad
            grad = grad + f(keep) * velocity if nesterov else velocity
        target -= rate * grad
    return squared_norm(mean) if norm else None


def reduce_adamw(
    shards: Any,
    param: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any = 1e-3,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    dtype: Any = None,
    weights: Any = None,
    scale: Any = None,
    order: Any = "tree",
    threads: Any = 1,
    norm: bool = False,
) -> float | None:
    count = arguments.integer("step", step, 1, 1 << 53)
    rate = arguments.not_negative("lr", lr)
    beta1, beta2 = arguments.betas(betas)
    least = arguments.not_negative("eps", eps)
    decay = arguments.not_negative("weight_decay", weight_decay)
    target = writable_floats(param, "param")
    first = writable_floats(exp_avg, "exp_avg", target.size)
    second = writable_floats(exp_avg_sq, "exp_avg_sq", target.size)
    outputs = {"param": target, "exp_avg": first, "exp_avg_sq": second}
    grad = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    f = np.float32
    root = f(math.sqrt(1.0 - beta2**count))
    with np.errstate(all="ignore"):
        first += f(1.0 - beta1) * (grad - first)
        second[:] = f(beta2) * second + f(1.0 - beta2) * (grad * grad)
        update = first / (np.sqrt(second) / root + f(least))
        target[:] = target * f(1.0 - rate * decay) - f(rate / (1.0 - beta1**count)) * update
    return squared_norm(grad) if norm else None
