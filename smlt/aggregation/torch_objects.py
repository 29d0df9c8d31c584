"""Objects that ranks send one another under ``torch.distributed``, by msgpack.

torch pickles the objects of ``all_gather_object`` and its like, and a pickle runs what its sender
names. Here there are values, containers, arrays and tensors: data, and nothing that is called.
"""

from __future__ import annotations

import collections
import datetime
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np
import torch
from torch.distributed import distributed_c10d

from smlt.errors import UserError

_DEEPEST = 50
"""Levels of what msgpack itself does not know, each within the next."""
_NUMBERS = "?biufcSmM"
"""Kinds of NumPy's that any bytes are right for: no references to objects, no Unicode."""
_FACTORIES = [None, int, float, str, list, dict, set]


class _Kind(NamedTuple):
    """What is sent as something plainer. The place in the list is its number on the wire."""

    type: type
    plainer: Callable[[Any], Any]
    rebuilt: Callable[[Any], Any]


def _dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in _NUMBERS:
        raise UserError(f"NumPy's {dtype} cannot be sent: numbers, bytes and dates can")
    return dtype


def _of_array(array: np.ndarray[Any, Any]) -> list[Any]:
    return [_dtype(array.dtype.str).str, list(array.shape), array.tobytes()]


def _array(plain: list[Any]) -> np.ndarray[Any, Any]:
    dtype, shape, data = plain
    return np.frombuffer(bytearray(data), _dtype(dtype)).reshape(shape)


def _of_tensor(tensor: torch.Tensor) -> list[Any]:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"a {tensor.layout} tensor of {tensor.dtype} cannot be sent: a dense can")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes()
    return [_of_torch_dtype(tensor.dtype), list(tensor.shape), data, tensor.requires_grad]


def _tensor(plain: list[Any]) -> torch.Tensor:
    dtype, shape, data, requires_grad = plain
    flat = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).view(_torch_dtype(dtype))
    return flat.reshape(shape).requires_grad_(bool(requires_grad))


def _of_torch_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or name.startswith(("q", "bits")):
        raise UserError(f"torch has no dtype {name!r} of numbers")
    return dtype


_KINDS = [
    _Kind(int, hex, lambda plain: int(plain, 16)),  # of more than 64 bits
    _Kind(complex, lambda value: [value.real, value.imag], lambda plain: complex(*plain)),
    _Kind(tuple, list, tuple),
    _Kind(set, list, set),
    _Kind(frozenset, list, frozenset),
    _Kind(range, lambda value: [value.start, value.stop, value.step], lambda p: range(*p)),
    _Kind(slice, lambda value: [value.start, value.stop, value.step], lambda p: slice(*p)),
    _Kind(collections.OrderedDict, dict, collections.OrderedDict),
    _Kind(collections.Counter, dict, collections.Counter),
    _Kind(
        collections.defaultdict,
        lambda value: [_FACTORIES.index(value.default_factory), dict(value)],
        lambda plain: collections.defaultdict(_FACTORIES[plain[0]], plain[1]),
    ),
    _Kind(
        collections.deque,
        lambda value: [list(value), value.maxlen],
        lambda plain: collections.deque(*plain),
    ),
    _Kind(datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    _Kind(datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    _Kind(datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    _Kind(
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda plain: datetime.timedelta(*plain),
    ),
    _Kind(np.dtype, lambda value: _dtype(value.str).str, _dtype),
    _Kind(np.ndarray, _of_array, _array),
    _Kind(np.generic, lambda value: _of_array(np.asarray(value)), lambda p: _array(p)[()]),
    _Kind(torch.dtype, _of_torch_dtype, _torch_dtype),
    _Kind(torch.Size, list, torch.Size),
    _Kind(torch.device, str, torch.device),
    _Kind(
        torch.nn.Parameter,
        _of_tensor,
        lambda plain: torch.nn.Parameter(_tensor([*plain[:3], False]), bool(plain[3])),
    ),
    _Kind(torch.Tensor, _of_tensor, _tensor),
]
_FAMILIES = (np.dtype, np.generic)
"""Types of which only subclasses have values."""


def dump(value: Any, depth: int = 0) -> bytes:
    """Return an object as bytes.

    Raises:
        UserError: it is, or contains, what only a pickle could hold.
    """

    def plainer(part: Any) -> msgpack.ExtType:
        for number, kind in enumerate(_KINDS):
            if type(part) is kind.type or (kind.type in _FAMILIES and isinstance(part, kind.type)):
                return msgpack.ExtType(number, dump(kind.plainer(part), depth + 1))
        raise UserError(
            f"a {type(part).__module__}.{type(part).__qualname__} cannot be sent to other ranks as"
            " it is: send plain values, containers, arrays and tensors, or write &pickle=true"
            " behind the init_method if whoever can write to the parameter store may run code here"
        )

    _check(depth)
    try:
        packed = msgpack.packb(
            value, default=plainer, strict_types=True, unicode_errors="surrogatepass"
        )
        return bytes(packed)
    except (ValueError, TypeError, OverflowError) as exc:
        raise UserError(f"an object cannot be sent to other ranks: {exc}") from exc


def load(data: bytes, depth: int = 0) -> Any:
    """Return the object of which ``dump`` has made these bytes.

    Raises:
        UserError: they are none such.
    """

    def rebuilt(number: int, plain: bytes) -> Any:
        return _KINDS[number].rebuilt(load(plain, depth + 1))

    _check(depth)
    try:
        return msgpack.unpackb(
            data, ext_hook=rebuilt, strict_map_key=False, unicode_errors="surrogatepass"
        )
    except UserError:
        raise
    except Exception as exc:
        words = " ".join(str(exc).split())
        raise UserError(f"a rank has sent an object that cannot be read: {words}") from exc


def _check(depth: int) -> None:
    if depth > _DEEPEST:
        raise UserError(f"an object of more than {_DEEPEST} containers in one another is too deep")


def exchange_plainly(applies: Callable[[Any], bool]) -> None:
    """Have torch send and read the objects of some groups by ``dump`` and ``load``."""
    to_tensor = distributed_c10d._object_to_tensor
    to_object = distributed_c10d._tensor_to_object

    def object_to_tensor(obj: Any, device: Any, group: Any) -> Any:
        if not applies(group or distributed_c10d._get_default_group()):
            return to_tensor(obj, device, group)  # type: ignore[no-untyped-call]
        # torch pads it to the longest: into memory of its own, which it can resize.
        data = torch.tensor(np.frombuffer(dump(obj), np.uint8), device=device)
        return data, torch.tensor([data.numel()], dtype=torch.long, device=device)

    def tensor_to_object(tensor: torch.Tensor, tensor_size: int, group: Any) -> Any:
        if not applies(group or distributed_c10d._get_default_group()):
            return to_object(tensor, tensor_size, group)  # type: ignore[no-untyped-call]
        return load(tensor.cpu().numpy().tobytes()[: int(tensor_size)])

    distributed_c10d._object_to_tensor = object_to_tensor
    distributed_c10d._tensor_to_object = tensor_to_object
