"""An array as it is stored and sent: a dtype by name, a shape, and its bytes.

NumPy has no bfloat16, torch has; naming dtypes as safetensors does serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
    "C64": "<c8", "C128": "<c16",
}  # fmt: skip
ITEM_SIZES = {name: np.dtype(code).itemsize for name, code in NUMPY_DTYPES.items()} | {"BF16": 2}
_NAMES = {np.dtype(code): name for name, code in NUMPY_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dtype name of safetensors, a shape, and the C-contiguous bytes as a flat uint8 array."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def numpy(self) -> NDArray[Any]:
        """Return the array, sharing memory; bfloat16 comes as uint16."""
        return self.data.view(NUMPY_DTYPES.get(self.dtype, "<u2")).reshape(self.shape)


def as_tensor(array: Tensor | NDArray[Any]) -> Tensor:
    """Wrap a NumPy array without copying it.

    Raises:
        TypeError: the array is not C-contiguous, or of a dtype that is not stored.
    """
    if isinstance(array, Tensor):
        return array
    if array.dtype not in _NAMES:
        raise TypeError(f"arrays of dtype {array.dtype} cannot be stored")
    if not array.flags.c_contiguous:
        raise TypeError(f"an array of shape {array.shape} is not C-contiguous")
    return Tensor(_NAMES[array.dtype], array.shape, array.reshape(-1).view(np.uint8))
