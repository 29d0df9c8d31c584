"""What users give to an aggregator, as the types that it takes; else refused in a sentence."""

from __future__ import annotations

import math
import operator
from typing import Any

from smlt.errors import ConfigError, UserError

_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 1e-15, 1e15


def whole(name: str, value: Any) -> int:
    """Return an int, of whatever kind it was: Python's, NumPy's, a tensor's item.

    Raises:
        ConfigError: it is none.
    """
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return operator.index(value)
    raise ConfigError(f"{name}={value!r} is no whole number")


def positive(name: str, value: Any) -> float:
    """Return a float of more than 0.

    Raises:
        ConfigError: it is none.
    """
    number = _number(value)
    if not 0 < number < math.inf:
        raise ConfigError(f"{name}={value!r} is no number above 0")
    return number


def text(name: str, value: Any) -> str:
    """Return a string.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is no text")
    return value


def weight(value: Any) -> float:
    """Return how much a rank counts.

    Raises:
        UserError: it is no number, negative, or so large or small that float32 has no such sums.
    """
    number = _number(value)
    if number and not _SMALLEST_WEIGHT <= number <= _LARGEST_WEIGHT:
        raise UserError(
            f"weight={value!r} is no weight: give a number of samples, 0 or"
            f" {_SMALLEST_WEIGHT:g} to {_LARGEST_WEIGHT:g}"
        )
    return number


def member(name: str, value: Any, world_size: int) -> int:
    """Return a rank.

    Raises:
        UserError: the world has no such rank.
    """
    rank = whole(name, value)
    if not 0 <= rank < world_size:
        raise UserError(f"{name} {rank} is outside a world of {world_size}")
    return rank


def _number(value: Any) -> float:
    """Return a float, NaN for what is no number."""
    if isinstance(value, bool | str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
