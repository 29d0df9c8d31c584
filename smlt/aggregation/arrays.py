"""What users give to be averaged or sent, as named arrays that can be read and overwritten.

Dicts, lists and tuples of NumPy arrays, torch tensors, and whatever shares its memory by the
buffer protocol or DLPack. torch is never imported here: who passes a tensor has done so.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smlt.errors import UserError

Array = NDArray[Any]
Flat = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Item(Protocol):
    """One array of the user's, under the name that all ranks know it by."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shared(self) -> Flat | None:
        """The user's own memory as flat float32, where it is that."""
        ...

    def read(self, out: Array) -> None:
        """Copy the values into an array of the same shape and another dtype."""

    def write(self, values: Array) -> None:
        """Copy values back; integers are rounded to the nearest."""

    def raw(self) -> Bytes:
        """Return the bytes, in C order; a copy where memory is not contiguous."""
        ...

    def set_raw(self, data: Bytes) -> None:
        """Copy bytes back."""


@dataclass(frozen=True, slots=True)
class NumpyItem:
    name: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        return _name_of(self.array.dtype)

    @property
    def shared(self) -> Flat | None:
        plain = self.array.flags.c_contiguous and self.array.flags.aligned
        return self.array.reshape(-1) if plain and self.array.dtype == np.float32 else None

    def read(self, out: Array) -> None:
        np.copyto(out, self.array)

    def write(self, values: Array) -> None:
        source = _whole(values, self.array.dtype) if self.array.dtype.kind in "iu" else values
        np.copyto(self.array, source, casting="unsafe")

    def raw(self) -> Bytes:
        return np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)

    def set_raw(self, data: Bytes) -> None:
        self.array[...] = data.view(self.array.dtype).reshape(self.array.shape)


@dataclass(frozen=True, slots=True)
class TorchItem:
    name: str
    tensor: Any
    torch: Any
    """The module, which only its users import."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shared(self) -> Flat | None:
        tensor = self.tensor
        plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_neg()
        if not plain or tensor.dtype != self.torch.float32:
            return None
        return memory_of(tensor.reshape(-1))

    def read(self, out: Array) -> None:
        self.torch.from_numpy(out).copy_(self.tensor)

    def write(self, values: Array) -> None:
        whole = not self.tensor.is_floating_point()
        source = _whole(values, np.dtype(self.dtype)) if whole else values
        self.tensor.copy_(self.torch.from_numpy(source))

    def raw(self) -> Bytes:
        # uint8 is the one dtype into which every other can be viewed.
        flat = self.tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return memory_of(flat.view(self.torch.uint8))

    def set_raw(self, data: Bytes) -> None:
        source = self.torch.from_numpy(data.copy()).view(self.tensor.dtype)
        self.tensor.copy_(source.reshape(self.tensor.shape))


class _Memory:
    """A flat tensor on the CPU, kept alive by the array that is made of it.

    After ``Tensor.numpy`` the tensor could never be resized, as FSDP does.
    """

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "typestr": _typestr(str(tensor.dtype)),
            "shape": (tensor.numel(),),
            "data": (tensor.data_ptr(), False),
        }


def memory_of(tensor: Any) -> Array:
    """Return a flat, contiguous torch tensor's memory as an array."""
    return np.asarray(_Memory(tensor))


@cache
def _typestr(torch_dtype: str) -> str:
    return np.dtype(torch_dtype.removeprefix("torch.")).str


@cache  # NumPy puts it together anew each time, which is most of the work on a tiny array
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.newbyteorder("=").name


def _whole(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round to integers; float64 has 2⁶³ where int64 ends one before it."""
    rounded, largest = np.rint(values), np.iinfo(dtype).max
    with np.errstate(invalid="ignore"):
        whole = rounded.astype(dtype)
    return np.where(rounded >= float(largest), dtype.type(largest), whole)


def is_wide(found: Item) -> bool:
    """Whether to average in float64, because float32 would lose digits.

    Raises:
        UserError: there is no average of its dtype.
    """
    if not found.dtype.startswith(("float", "bfloat16", "int", "uint")):
        raise UserError(f"{found.name} is of {found.dtype}, which has no average: pass numbers")
    return found.dtype not in ("float32", "float16", "bfloat16")


def items(values: Any, what: str = "grads") -> list[Item]:
    """Return the arrays in the order that all ranks share: by name, or by place.

    Raises:
        UserError: something is no array, or cannot be written to.
    """
    if isinstance(values, Mapping):
        if not all(isinstance(name, str) for name in values):
            raise UserError(f"{what} has keys that are no strings: name each array")
        named = sorted(values.items())
    elif isinstance(values, list | tuple):
        named = [(str(index), value) for index, value in enumerate(values)]
    else:
        return [writable(what, values)]
    return [writable(f"{what}[{name!r}]", value) for name, value in named]


def writable(name: str, value: Any) -> Item:
    """Wrap one array that is to be overwritten.

    Raises:
        UserError: as ``items``.
    """
    found = item(name, value)
    if isinstance(found, NumpyItem):
        is_writable = found.array.flags.writeable
    else:
        # Of an expanded tensor several elements lie at one place.
        sizes = zip(found.shape, found.tensor.stride(), strict=True)
        is_writable = all(size < 2 or stride for size, stride in sizes)
    if not is_writable:
        raise UserError(f"{name} cannot be written to, and the result belongs there: pass a copy")
    return found


def item(name: str, value: Any) -> NumpyItem | TorchItem:
    """Wrap one array.

    Raises:
        UserError: it is none, or of a layout that is not supported.
    """
    if value is None:
        raise UserError(f"{name} is None on this rank: pass zeros where there is no gradient")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise UserError(f"{name} is a {value.layout} tensor: pass a dense one")
        if value.device.type == "meta":
            raise UserError(f"{name} is on torch's meta device, which holds no numbers")
        return TorchItem(name, value.detach(), torch)
    array = _array(name, value)
    if array.dtype.hasobject or not array.dtype.isnative:
        raise UserError(f"{name} is of {array.dtype}, not numbers in this machine's byte order")
    return NumpyItem(name, array)


def _array(name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as exc:
            raise UserError(f"{name} does not share its memory with NumPy: {exc}") from exc
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError):
        raise UserError(
            f"{name} is a {type(value).__name__}: pass NumPy arrays, torch tensors, or what has"
            " the buffer protocol or DLPack, in a dict, list or tuple"
        ) from None


def stacked(like: Item, ranks: int) -> tuple[Any, list[Bytes]]:
    """Return room for one such array of each rank, of the same kind, and each one's bytes."""
    shape = (ranks, *like.shape)
    if isinstance(like, TorchItem):
        room = like.torch.empty(shape, dtype=like.tensor.dtype)
        rows = TorchItem(like.name, room, like.torch).raw().reshape(ranks, -1)
        return room, list(rows)
    array = np.empty(shape, like.array.dtype if isinstance(like, NumpyItem) else like.dtype)
    return array, list(array.reshape(-1).view(np.uint8).reshape(ranks, -1))


def layout_of(found: Sequence[Item]) -> bytes:
    """Describe names, shapes and dtypes, one line each, as ranks compare them."""
    return "\n".join(f"{i.name} {i.dtype} {list(i.shape)}" for i in found).encode()


def in_words(found: Sequence[Item]) -> str:
    """Describe arrays in a line."""
    layout = layout_of(found).decode().replace("\n", ", ")
    if len(found) == 1:
        return layout
    return f"{len(found)} arrays: {layout[:200]}{' …' if len(layout) > 200 else ''}"


def layout_digest(layout: bytes) -> str:
    return hashlib.sha256(layout).hexdigest()[:16]


def difference(ours: bytes, theirs: bytes) -> str:
    """Say in words where two layouts first differ."""
    mine, others = ours.decode().split("\n"), theirs.decode().split("\n")
    for left, right in zip(mine, others, strict=False):
        if left != right:
            return f"this rank gives {left}, another one {right}"
    return f"this rank gives {len(mine)} arrays, another one {len(others)}"
