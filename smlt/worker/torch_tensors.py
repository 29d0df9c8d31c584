"""torch tensors as named bytes, and back, each with its own dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smlt.errors import TaskError
from smlt.io.tensor import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64, "C128": torch.complex128,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def export(name: str, tensor: torch.Tensor) -> Tensor:
    """Wrap a tensor on the CPU; its memory is shared where it is contiguous, else copied.

    Raises:
        TaskError: the tensor is of a dtype or a layout that is not stored.
    """
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise TaskError(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}, which "
            "cannot be stored: keep it dense, on the CPU and of a common dtype"
        )
    return Tensor(dtype, tuple(tensor.shape), _bytes(tensor.detach().contiguous()))


def overwrite(tensor: torch.Tensor, source: Tensor) -> None:
    """Copy a stored tensor of the same shape over this one, converting its dtype if need be."""
    with torch.no_grad():
        tensor.copy_(create(source))


def create(source: Tensor) -> torch.Tensor:
    """Return a new tensor with the dtype, shape and bytes of a stored one."""
    tensor = torch.empty(source.shape, dtype=DTYPES[source.dtype])
    _bytes(tensor)[...] = source.data
    return tensor


def real(tensor: torch.Tensor) -> torch.Tensor:
    """View a complex tensor as pairs of real numbers; a real one is returned as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def from_view(view: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    """Return a float32 view as a tensor of the dtype of ``like``, sharing memory if it can."""
    tensor = torch.from_numpy(view)
    if like.is_complex():
        tensor = torch.view_as_complex(tensor)
    return tensor.to(like.dtype)


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat = real(tensor).reshape(-1)
    # uint8 is the one dtype into which every other can be viewed.
    data: NDArray[Any] = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return data
