"""What becomes of the arrays of all ranks: sum, mean, minimum and their like, in rank order.

Ranks fold the same arrays in the same order, so that all of them hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt.errors import UserError

Array = NDArray[Any]

_UFUNCS: dict[str, Callable[..., Any]] = {
    "sum": np.add, "avg": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum,
    "band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor,
}  # fmt: skip


def fold(arrays: Iterable[Array], op: str, out: Array) -> None:
    """Combine arrays of one shape and dtype into ``out``, which may be none of them.

    float16 is added up in float32 and rounded once. An average of integers is rounded towards
    zero, as torch rounds it.

    Raises:
        UserError: there is no such operation, or not for this dtype.
    """
    if op not in _UFUNCS:
        raise UserError(f"there is no reduction {op!r}: it is one of {', '.join(_UFUNCS)}")
    wide = np.float32 if out.dtype == np.float16 else out.dtype
    arrays = iter(arrays)
    total = np.array(next(arrays), dtype=wide, copy=True)
    count = 1
    try:
        for array in arrays:
            _UFUNCS[op](total, array, out=total, casting="same_kind")
            count += 1
        if op == "avg":
            _divide(total, count)
    except TypeError as exc:
        raise UserError(f"{op} cannot be taken of {out.dtype} arrays: {exc}") from exc
    out[...] = total


def _divide(total: Array, count: int) -> None:
    if np.issubdtype(total.dtype, np.inexact):
        np.divide(total, count, out=total)
    else:
        total[...] = np.trunc(total / count).astype(total.dtype)
