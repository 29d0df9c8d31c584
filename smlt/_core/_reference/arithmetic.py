"""The sums themselves: what is added to what, and where it is rounded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core._reference.buffers import Float32


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


def scaled_sum(
    shards: Sequence[NDArray[Any]], factors: list[float] | None, scale: float | None, order: str
) -> Float32:
    """Return scale * sum of factors * shards, in the documented order and rounding."""
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


def squared_norm(mean: Float32) -> float:
    with np.errstate(all="ignore"):
        return float(np.sum(np.square(mean, dtype=np.float64)))


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
