"""Objects that ranks send one another: read without running what a sender would have run.

torch pickles the objects of ``all_gather_object`` and its like, and a pickle names the functions
that rebuild it. Here only those are called that build plain values, arrays and tensors.
"""

from __future__ import annotations

import collections
import datetime
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.distributed import distributed_c10d

from smlt.errors import UserError

_TYPES = (
    *(bool, int, float, complex, str, bytes, bytearray, range, slice),
    *(list, tuple, dict, set, frozenset),
    *(collections.OrderedDict, collections.defaultdict, collections.deque),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
    *(np.ndarray, np.dtype, torch.Size, torch.device),
)


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


_FUNCTIONS: dict[str, Any] = {
    "collections.Counter": collections.Counter,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _storage,
}
# NumPy 1 has these at another place than NumPy 2.
for _rebuild in (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]):
    for _core in ("core", "_core"):
        _FUNCTIONS[f"numpy.{_core}.multiarray.{getattr(_rebuild, '__name__', '')}"] = _rebuild


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, text, bytes, containers, dates, NumPy arrays and torch tensors.

    Besides, what ``torch.serialization.add_safe_globals`` was given.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what builds a value.

        Raises:
            UserError: it might do something else.
        """
        full_name = f"{module}.{name}"
        if full_name in _FUNCTIONS:
            function = _FUNCTIONS[full_name]
            # A pickle may set attributes of what it names: let it be of no use to anybody else.
            return lambda *args: function(*args)
        known = dict(map(_named, (*_TYPES, *torch.serialization.get_safe_globals())))
        if full_name in known:
            return known[full_name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise UserError(
            f"a rank has sent a {full_name}, and to rebuild it might run what the sender likes:"
            " send plain values, arrays and tensors, allow the class by"
            " torch.serialization.add_safe_globals, or write &pickle=true behind the init_method"
            " if whoever can write to the parameter store may run code here"
        )


def load(data: bytes) -> Any:
    """Return the object that was pickled.

    Raises:
        UserError: it is of a kind that is not built, or no pickle at all.
    """
    try:
        return PlainUnpickler(io.BytesIO(data)).load()
    except UserError:
        raise
    except Exception as exc:
        raise UserError(f"a rank has sent an object that cannot be read: {exc}") from exc


def read_plainly(applies: Callable[[Any], bool]) -> None:
    """Have torch read the objects of some groups by ``load``; those of others as before."""
    theirs = distributed_c10d._tensor_to_object

    def tensor_to_object(tensor: torch.Tensor, tensor_size: int, group: Any) -> Any:
        if not applies(group or distributed_c10d._get_default_group()):
            return theirs(tensor, tensor_size, group)  # type: ignore[no-untyped-call]
        return load(tensor.cpu().numpy().tobytes()[: int(tensor_size)])

    distributed_c10d._tensor_to_object = tensor_to_object


def _named(known: Any) -> tuple[str, Any]:
    """Return what a pickle calls it; ``add_safe_globals`` takes pairs with another name, too."""
    if isinstance(known, tuple):
        return known[1], known[0]
    return f"{known.__module__}.{known.__qualname__}", known
