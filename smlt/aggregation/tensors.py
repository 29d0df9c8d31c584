"""torch tensors as flat NumPy arrays that are sent and received, and copied back where need be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray

from smlt.aggregation.arrays import memory_of
from smlt.aggregation.wire import Wire
from smlt.errors import UserError

_WIRES = {torch.bfloat16: lambda: Wire("bf16"), torch.float16: lambda: Wire("fp16")}


@dataclass(frozen=True, slots=True)
class Staged:
    """An array that stands for a tensor: its own memory, or a copy to be copied back."""

    array: NDArray[Any]
    copy_back: Callable[[], Any] = lambda: None
    wire: Wire = field(default_factory=Wire)
    """How sums of it travel: what is of 16 bits before and after needs no more on its way."""


def numeric_view(tensor: torch.Tensor) -> Staged:
    """Return the numbers to reduce; those of 16 bits or fewer as float32, complex ones as pairs.

    Raises:
        UserError: the tensor is sparse.
    """
    tensor = _dense(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    narrow = tensor.is_floating_point() and tensor.element_size() < 4
    dense = tensor.to(torch.float32) if narrow else tensor
    flat = dense.cpu().contiguous().reshape(-1)
    staged = _staged(flat, flat, tensor)
    return replace(staged, wire=_WIRES[tensor.dtype]()) if tensor.dtype in _WIRES else staged


def byte_view(tensor: torch.Tensor) -> Staged:
    """Return the bytes to send or to receive.

    Raises:
        UserError: the tensor is sparse.
    """
    tensor = _dense(tensor)
    flat = tensor.cpu().contiguous().reshape(-1)
    # uint8 is the one dtype into which every other can be viewed.
    return _staged(flat.view(torch.uint8), flat, tensor)


def _staged(view: torch.Tensor, flat: torch.Tensor, tensor: torch.Tensor) -> Staged:
    if flat.data_ptr() == tensor.data_ptr():
        return Staged(memory_of(view))
    return Staged(memory_of(view), lambda: tensor.copy_(flat.reshape(tensor.shape)))


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided:
        raise UserError(
            f"the smlt backend has no {tensor.layout} tensors: use dense gradients"
            " (Embedding(sparse=False))"
        )
    return tensor.detach().resolve_conj().resolve_neg()
