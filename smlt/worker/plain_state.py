"""Python state as strict JSON and arrays: what an optimizer or a scheduler keeps beside tensors.

JSON has no infinity, no tuple, and no keys but strings; those are written as ``{"$kind": ...}``.
Tensors are set apart under names of their own, so that their bytes travel as bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from smlt.errors import TaskError


def encode(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return ``value`` as strict JSON; its tensors are added to ``tensors`` below ``name``.

    Functions in mappings are left out: they are code, which the user's hooks bring again.

    Raises:
        TaskError: the state holds an object that is neither plain data nor a tensor.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, tuple | list):
        items = [encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return _encode_mapping(value, name, tensors)
    raise TaskError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold: keep numbers, "
        "strings, lists, dicts and tensors in the state of optimizers and schedulers"
    )


def _encode_mapping(
    value: Mapping[Any, Any], name: str, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    kept = {key: item for key, item in value.items() if not callable(item)}
    if not isinstance(value, Counter) and all(
        isinstance(key, str) and not key.startswith("$") for key in kept
    ):
        return {key: encode(item, f"{name}.{key}", tensors) for key, item in kept.items()}
    kind = "$counter" if isinstance(value, Counter) else "$items"
    return {
        kind: [
            [encode(key, f"{name}.key", tensors), encode(item, f"{name}.{key}", tensors)]
            for key, item in kept.items()
        ]
    }


def decode(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return what ``encode`` was given."""
    if isinstance(plain, list):
        return [decode(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        ((kind, content),) = plain.items()
        if kind == "$tensor":
            return tensors[content]
        if kind == "$float":
            return float(content)
        if kind == "$tuple":
            return tuple(decode(item, tensors) for item in content)
        if kind in ("$items", "$counter"):
            pairs = {decode(k, tensors): decode(v, tensors) for k, v in content}
            return Counter(pairs) if kind == "$counter" else pairs
    return {key: decode(item, tensors) for key, item in plain.items()}
