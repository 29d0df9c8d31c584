"""Whether the tensors of a collective fit one another: refused before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smlt.errors import UserError


def check_each(
    what: str, tensors: Sequence[torch.Tensor], ranks: int, *, like: torch.Tensor | None = None
) -> None:
    """Check that there is a tensor for each rank, all of one kind where that is given.

    Raises:
        UserError: there is not.
    """
    if len(tensors) != ranks:
        raise UserError(f"{what} among {ranks} ranks takes as many tensors, not {len(tensors)}")
    if like is not None:
        for tensor in tensors:
            check_alike(what, tensor, like)


def check_alike(what: str, tensor: torch.Tensor, other: torch.Tensor, times: int = 1) -> None:
    """Check that a tensor holds as much as another one, or so many times as much.

    Raises:
        UserError: it does not.
    """
    if tensor.dtype != other.dtype or tensor.numel() != times * other.numel():
        many = "" if times == 1 else f"{times} times "
        raise UserError(f"{what}: {_said(tensor)} do not match {many}{_said(other)}")


def cut(what: str, tensor: torch.Tensor, splits: list[int], ranks: int) -> list[torch.Tensor]:
    """Cut a tensor into a part for each rank, of so many rows; without ``splits`` all alike.

    Raises:
        UserError: they are not the rows that it has.
    """
    rows = len(tensor) if tensor.dim() else 0
    splits = splits or [rows // ranks] * ranks
    if len(splits) != ranks or sum(splits) != rows:
        raise UserError(f"{what}: {rows} rows cannot be cut into {splits} for {ranks} ranks")
    return list(torch.split(tensor, splits))


def _said(tensor: torch.Tensor) -> str:
    return f"{tensor.numel()} {str(tensor.dtype).removeprefix('torch.')}"
