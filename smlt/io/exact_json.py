"""JSON that gives back exactly what it was given: infinities, NaN and tuples among the rest.

What JSON lacks is written as an object with one key that begins with ``$``; a user's own key
that begins so gets another ``$``.
"""

from __future__ import annotations

import json
import math
from typing import Any

from smlt.errors import CheckpointError


def dumps(value: Any) -> str:
    """Return strict, canonical JSON: sorted keys, no spaces; floats in their shortest exact form.

    Raises:
        CheckpointError: a value is of another type than None, bool, int, float, str, list,
            tuple, and dict with string keys; its place is named.
    """
    plain = _encoded(value, "it")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Return what ``dumps`` was given.

    Raises:
        ValueError: the text is no JSON.
    """
    return decoded(json.loads(text))


def encoded(value: Any) -> Any:
    """Return the value in terms of plain JSON, for a part of a larger document."""
    return _encoded(value, "it")


def _encoded(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, list):
        return [_encoded(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encoded(item, f"{place}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {_escaped(k): _encoded(item, f"{place}[{k!r}]") for k, item in value.items()}
    kind = "dict whose keys are not all strings" if isinstance(value, dict) else _name(value)
    raise CheckpointError(
        f"the state's scalars cannot be saved: {place} is a {kind}; use numbers, strings, None,"
        " lists, tuples and dicts with string keys, and put arrays among the tensors"
    )


def decoded(value: Any) -> Any:
    """Undo ``encoded``."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(key, item)] = value.items()
        if key == "$float":
            return float(item)
        if key == "$tuple":
            return tuple(decoded(part) for part in item)
    return {key[1:] if key.startswith("$") else key: decoded(item) for key, item in value.items()}


def _escaped(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
