"""What a call is given, as NumPy sees it: memory, shards, and whether they overlap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core import arguments

Float32 = NDArray[np.float32]

DTYPES = ("fp32", "fp16", "bf16")
ORDERS = ("fold", "tree", "fp64")

_FORMATS = {"fp32": "f", "fp16": "eH", "bf16": "H"}
_STORED = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}


def contiguous(source: Any, name: str, *, writable: bool) -> memoryview:
    try:
        view = memoryview(source)
    except TypeError:
        raise TypeError(f"{name} is {arguments.kind(source)}, which has no buffer") from None
    except (ValueError, BufferError):
        view = None
    if view is None or not view.c_contiguous or (writable and view.readonly):
        raise BufferError(
            f"{name} must be {'writable and ' if writable else ''}C-contiguous memory"
        )
    return view


def item_format(view: memoryview) -> str:
    form = view.format[1:] if view.format[:1] in "<=@" else view.format
    return form if len(form) == 1 else "*"


def stored_as(view: memoryview, dtype: Any) -> NDArray[Any]:
    """Return the memory as a flat array, even where there is none."""
    return np.frombuffer(view, dtype) if view.nbytes else np.empty(0, dtype)


def writable_floats(target: Any, name: str, count: int | None = None) -> Float32:
    view = contiguous(target, name, writable=True)
    if item_format(view) != "f":
        raise TypeError(f"{name} must be float32")
    if count is not None and view.nbytes != 4 * count:
        raise ValueError(f"{name} has {view.nbytes // 4} elements, not {count}")
    return stored_as(view, np.float32)


def writable_halves(target: Any, name: str) -> NDArray[np.uint16]:
    view = contiguous(target, name, writable=True)
    if item_format(view) not in "He":
        raise TypeError(f"{name} must be uint16 or float16")
    return stored_as(view, np.uint16)


def _inferred(form: str, nbytes: int, count: int) -> str:
    if form in "fe":
        return "fp32" if form == "f" else "fp16"
    if form == "H":
        raise TypeError("uint16 shards may be fp16 or bf16: say which with dtype=")
    if count and nbytes == 2 * count:
        raise TypeError("two bytes an element may be fp16 or bf16: say which with dtype=")
    return "fp32"


def checked_shards(
    shards: Any, count: int, dtype: str | None, weights: Any
) -> tuple[list[NDArray[Any]], str, list[float] | None]:
    """Return the shards as arrays of their stored type, their dtype, and their weights."""
    sources = arguments.items("shards", "buffers", shards)
    if not sources:
        raise ValueError("there is no shard to reduce")
    if dtype is not None:
        dtype = arguments.choice("dtype", dtype, DTYPES)
    arrays = []
    for i, source in enumerate(sources):
        view = contiguous(source, "a shard", writable=False)
        form = item_format(view)
        dtype = dtype or _inferred(form, view.nbytes, count)
        if form not in "Bbc" and form not in _FORMATS[dtype]:
            raise TypeError(f"shard {i} has items of format {form!r}, {dtype} was expected")
        if view.nbytes != count * np.dtype(_STORED[dtype]).itemsize:
            raise ValueError(
                f"shard {i} has {view.nbytes} bytes, {count} elements of {dtype} were expected"
            )
        arrays.append(stored_as(view, _STORED[dtype]))
    factors = None if weights is None else arguments.weights(weights, len(arrays), "shards")
    return arrays, str(dtype), factors


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    x, y = a.__array_interface__["data"][0], b.__array_interface__["data"][0]
    return bool(x < y + b.nbytes and y < x + a.nbytes)


def refuse_overlap(first: NDArray[Any], name: str, second: NDArray[Any], other: str) -> None:
    if _overlap(first, second):
        raise ValueError(f"{name} and {other} overlap in memory")


def refuse_overlap_with_shards(
    shards: Sequence[NDArray[Any]], output: NDArray[Any], name: str, *, may_be_same: bool
) -> None:
    start = output.__array_interface__["data"][0]
    for i, shard in enumerate(shards):
        same = shard.dtype == np.float32 and shard.__array_interface__["data"][0] == start
        if not (may_be_same and same):
            refuse_overlap(shard, f"shard {i}", output, name)
