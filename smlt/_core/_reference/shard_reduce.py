"""`shard_reduce` in NumPy: same names, same signatures, same bits, none of the speed."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

DTYPES = ("fp32", "fp16", "bf16")
ORDERS = ("fold", "tree", "fp64")
GROUP = 8

_FORMATS = {"fp32": "f", "fp16": "eH", "bf16": "H"}
_STORED = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}


def instruction_set() -> str:
    """Return the name of the kernels in use."""
    return "numpy"


def use_instruction_set(name: str) -> None:
    """Accept "numpy" and nothing else."""
    if name != "numpy":
        raise ValueError(f"this machine has no {name!r} kernels")


# ---- buffers ----


def _contiguous(source: Any, name: str, *, writable: bool) -> memoryview:
    try:
        view = memoryview(source)
    except TypeError:
        raise TypeError(f"{name} is a {type(source).__name__}, which has no buffer") from None
    if not view.c_contiguous or (writable and view.readonly):
        raise BufferError(
            f"{name} must be {'writable and ' if writable else ''}C-contiguous memory"
        )
    return view


def _format(view: memoryview) -> str:
    form = view.format.lstrip("<=@")
    return form if len(form) == 1 else "?"


def _output(target: Any, name: str, count: int | None, forms: str = "f") -> NDArray[Any]:
    view = _contiguous(target, name, writable=True)
    if _format(view) not in forms:
        raise TypeError(f"{name} must be {'float32' if forms == 'f' else 'uint16 or float16'}")
    if count is not None and view.nbytes // view.itemsize != count:
        raise ValueError(f"{name} has {view.nbytes // view.itemsize} elements, not {count}")
    return (
        np.frombuffer(view, np.float32 if forms == "f" else np.uint16)
        if view.nbytes
        else (np.empty(0, np.float32 if forms == "f" else np.uint16))
    )


def _infer(form: str, nbytes: int, count: int) -> str:
    if form in "fe":
        return "fp32" if form == "f" else "fp16"
    if form == "H":
        raise TypeError("uint16 shards may be fp16 or bf16: say which with dtype=")
    if count and nbytes == 2 * count:
        raise TypeError("two bytes an element may be fp16 or bf16: say which with dtype=")
    return "fp32"


def _shards(shards: Iterable[Any], count: int, dtype: str | None) -> tuple[list[NDArray[Any]], str]:
    """Return the shards as arrays of their stored type, and their dtype."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    arrays = []
    for i, source in enumerate(shards):
        view = _contiguous(source, "a shard", writable=False)
        form = _format(view)
        dtype = dtype or _infer(form, view.nbytes, count)
        if form not in "Bbc" and form not in _FORMATS[dtype]:
            raise TypeError(f"shard {i} has items of format {form!r}, {dtype} was expected")
        if view.nbytes != count * np.dtype(_STORED[dtype]).itemsize:
            raise ValueError(
                f"shard {i} has {view.nbytes} bytes, {count} elements of {dtype} were expected"
            )
        stored = _STORED[dtype]
        arrays.append(np.frombuffer(view, stored) if view.nbytes else np.empty(0, stored))
    if not arrays or dtype is None:
        raise ValueError("there is no shard to reduce")
    return arrays, dtype


def _span(array: NDArray[Any]) -> tuple[int, int]:
    start = array.__array_interface__["data"][0]
    return start, start + array.nbytes


def _refuse_overlap(
    inputs: Sequence[NDArray[Any]], outputs: dict[str, NDArray[Any]], *, may_be_same: bool = False
) -> None:
    named = list(outputs.items())
    for n, (name, output) in enumerate(named):
        start, end = _span(output)
        others = [(f"shard {i}", array) for i, array in enumerate(inputs)] + named[:n]
        for other, array in others:
            low, high = _span(array)
            same = may_be_same and array.dtype == np.float32 and low == start
            if low < end and start < high and not same:
                raise ValueError(f"{other} and {name} overlap in memory")


# ---- arithmetic ----


def widen(array: NDArray[Any]) -> Float32:
    """Return stored fp32, fp16 or bf16 (uint16) as float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def narrow(array: Float32, dtype: str) -> NDArray[np.uint16]:
    """Round float32 to the bits of fp16 or bf16, to nearest even; NaNs stay NaNs."""
    if dtype == "fp16":
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float16).view(np.uint16)
    bits = array.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    nan = (bits & np.uint32(0x7FFFFFFF)) > 0x7F800000
    return np.where(nan, bits >> 16 | 0x40, rounded).astype(np.uint16)


def _tree(terms: Sequence[Float32]) -> Float32:
    """The left-complete binary tree: the left child is the largest power of two below n."""
    if len(terms) == 1:
        return terms[0]
    half = 1 << (len(terms) - 1).bit_length() - 1
    return _tree(terms[:half]) + _tree(terms[half:])


def _fold(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _scaled_sum(
    shards: Sequence[NDArray[Any]],
    weights: Iterable[float] | None,
    scale: float | None,
    order: str,
) -> Float32:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    factors = None if weights is None else [float(w) for w in weights]
    if factors is not None and len(factors) != len(shards):
        raise ValueError(f"{len(factors)} weights for {len(shards)} shards")
    with np.errstate(all="ignore"):
        terms: list[Any] = [widen(shard) for shard in shards]
        if order == "fp64":
            terms = [term.astype(np.float64) for term in terms]
            if factors is not None:
                terms = [w * term for w, term in zip(factors, terms, strict=True)]
            wide = _fold(terms)
            result: Float32 = (wide * (1.0 if scale is None else scale)).astype(np.float32)
            return result
        if factors is not None:
            terms = [np.float32(w) * term for w, term in zip(factors, terms, strict=True)]
        total: Float32 = (_tree if order == "tree" else _fold)(terms)
        return total if scale is None else total * np.float32(scale)


def _norm(mean: Float32) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(np.square(mean, dtype=np.float64)))


def _reduced(
    shards: Iterable[Any],
    outputs: dict[str, NDArray[Any]],
    dtype: str | None,
    weights: Iterable[float] | None,
    scale: float | None,
    order: str,
    threads: int,
    *,
    may_be_same: bool = False,
) -> Float32:
    count = next(iter(outputs.values())).size
    arrays, _ = _shards(shards, count, dtype)
    _refuse_overlap(arrays, outputs, may_be_same=may_be_same)
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    return _scaled_sum(arrays, weights, scale, order)


# ---- the doors ----


def reduce(
    shards: Iterable[Any],
    out: Any,
    *,
    dtype: str | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: str = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None:
    target = _output(out, "out", None)
    mean = _reduced(
        shards, {"out": target}, dtype, weights, scale, order, threads, may_be_same=True
    )
    target[:] = mean
    return _norm(mean) if norm else None


def reduce_cast(
    shards: Iterable[Any],
    out: Any,
    *,
    wire_dtype: str,
    residual: Any = None,
    dtype: str | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: str = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None:
    target = _output(out, "out", None, "He")
    if wire_dtype not in ("fp16", "bf16"):
        raise ValueError("wire_dtype must be fp16 or bf16; reduce() gives fp32")
    outputs: dict[str, NDArray[Any]] = {"out": target}
    if residual is not None:
        outputs["residual"] = _output(residual, "residual", target.size)
    mean = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    target[:] = cast(mean, wire_dtype, outputs.get("residual"))
    return _norm(mean) if norm else None


def cast(mean: Float32, wire_dtype: str, residual: Float32 | None) -> NDArray[np.uint16]:
    """Round to the wire's dtype, with error feedback where there is a residual."""
    if residual is None:
        return narrow(mean, wire_dtype)
    with np.errstate(all="ignore"):
        exact = residual + mean
        wire = narrow(exact, wire_dtype)
        loss = exact - widen(wire.view(np.float16) if wire_dtype == "fp16" else wire)
    residual[:] = np.where(np.isfinite(loss), loss, np.float32(0.0))
    return wire


def reduce_sgd(
    shards: Iterable[Any],
    param: Any,
    momentum_buffer: Any = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first_step: bool = False,
    dtype: str | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: str = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None:
    target = _output(param, "param", None)
    outputs: dict[str, NDArray[Any]] = {"param": target}
    if momentum_buffer is not None:
        outputs["momentum_buffer"] = _output(momentum_buffer, "momentum_buffer", target.size)
    elif momentum != 0.0:
        raise ValueError("momentum needs a momentum_buffer")
    mean = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    f = np.float32
    grad = mean + f(weight_decay) * target
    if momentum_buffer is not None:
        velocity = outputs["momentum_buffer"]
        velocity[:] = f(momentum) * velocity + (f(1.0) if first_step else f(1.0 - dampening)) * grad
        grad = grad + f(momentum) * velocity if nesterov else velocity
    target -= f(lr) * grad
    return _norm(mean) if norm else None


def reduce_adamw(
    shards: Iterable[Any],
    param: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    dtype: str | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: str = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None:
    target = _output(param, "param", None)
    first = _output(exp_avg, "exp_avg", target.size)
    second = _output(exp_avg_sq, "exp_avg_sq", target.size)
    if step < 1:
        raise ValueError(f"step counts from 1, not {step}")
    outputs = {"param": target, "exp_avg": first, "exp_avg_sq": second}
    grad = _reduced(shards, outputs, dtype, weights, scale, order, threads)
    f = np.float32
    beta1, beta2 = betas
    first += f(1.0 - beta1) * (grad - first)
    second[:] = f(beta2) * second + f(1.0 - beta2) * (grad * grad)
    root = f(math.sqrt(1.0 - beta2**step))
    update = first / (np.sqrt(second) / root + f(eps))
    target[:] = target * f(1.0 - lr * weight_decay) - f(lr / (1.0 - beta1**step)) * update
    return _norm(grad) if norm else None


class StreamReducer:
    """Keeps every shard until `finish`: right, and as large as the batch."""

    def __init__(
        self,
        count: int,
        world_size: int,
        *,
        dtype: str | None = None,
        weights: Sequence[float] | None = None,
        order: str = "tree",
        threads: int = 1,
    ) -> None:
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}")
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        if weights is not None and len(weights) != world_size:
            raise ValueError(f"{len(weights)} weights for {world_size} shards")
        self._count, self._world_size = count, world_size
        self._reduce: Callable[[list[Any], Any, float | None], float | None] = (
            lambda shards, out, scale: reduce(
                shards, out, dtype=dtype, weights=weights, scale=scale, order=order
            )
        )
        self._dtype = dtype
        self._held: dict[int, Any] = {}

    @property
    def missing(self) -> list[int]:
        return [i for i in range(self._world_size) if i not in self._held]

    @property
    def held(self) -> list[int]:
        return sorted(self._held)

    @property
    def partial_count(self) -> int:
        return 0

    def add(self, index: int, shard: Any) -> list[int]:
        if not 0 <= index < self._world_size:
            raise ValueError(f"shard {index} is outside a world of {self._world_size}")
        if index in self._held:
            raise ValueError(f"shard {index} has been added already")
        _shards([shard], self._count, self._dtype)
        self._held[index] = shard
        return []

    def finish(self, out: Any, scale: float | None = None) -> None:
        if self.missing:
            raise ValueError(
                f"{len(self.missing)} of {self._world_size} shards are missing: {self.missing[:8]}"
            )
        _output(out, "out", self._count)
        self._reduce([self._held[i] for i in self.held], out, scale)
        self._held.clear()
