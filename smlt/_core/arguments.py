"""Checks of plain arguments, in one place so that the kernels and their twins use the same words.

The compiled doors look at the usual types themselves and come here with what is left.
"""

import operator
import reprlib
from collections.abc import Mapping
from typing import Any

MAX_THREADS = 64
MAX_COUNT = 1 << 46  # elements: more bytes than an address has
MAX_WORLD = 1 << 20


def kind(value: object) -> str:
    """Return "a list", "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def integer(name: str, value: Any, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """Return a whole number as an int.

    Raises:
        TypeError: it is none.
        ValueError: it is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {reprlib.repr(value)}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, not {number}")
    return number


def number(name: str, value: Any) -> float:
    """Return a number as a float.

    Raises:
        TypeError: it is none, or has no place in a float.
    """
    try:
        if not isinstance(value, str | bytes | bytearray):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"{name} must be a number, not {reprlib.repr(value)}")


def not_negative(name: str, value: Any) -> float:
    """Return a number that is neither negative nor NaN.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, or NaN.
    """
    checked = number(name, value)
    if not checked >= 0.0:
        raise ValueError(f"{name} must not be negative, not {checked}")
    return checked


def betas(pair: Any) -> tuple[float, float]:
    """Return AdamW's two decay rates.

    Raises:
        ValueError: they are not two, or outside [0, 1): a bias correction would divide by zero.
    """
    both = [number("a beta", beta) for beta in items("betas", "numbers", pair)]
    if len(both) != 2 or not all(0.0 <= beta < 1.0 for beta in both):
        raise ValueError(f"betas must be two numbers from 0 to below 1, not {reprlib.repr(pair)}")
    return both[0], both[1]


def threads(value: Any) -> int:
    """Return how many threads may run: as many as asked for, up to what the kernels can hold."""
    return min(integer("threads", value, 1, 1 << 63), MAX_THREADS)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return one of the names that are allowed.

    Raises:
        ValueError: it is another.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {reprlib.repr(value)}")


def items(name: str, of: str, values: Any) -> list[Any]:
    """Return what is in an iterable.

    Raises:
        TypeError: it cannot be iterated over.
    """
    try:
        found = iter(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {of}, not {kind(values)}") from None
    return list(found)


def weights(values: Any, expected: int, of: str) -> list[float]:
    """Return one factor for each of the `expected` shards or frames.

    Raises:
        TypeError: one is no number.
        ValueError: there are more or fewer.
    """
    factors = [number("a weight", value) for value in items("weights", "numbers", values)]
    if len(factors) != expected:
        raise ValueError(f"{len(factors)} weights for {expected} {of}")
    return factors


def named_arrays(tensors: Any, bf16: Any) -> list[tuple[str, Any, bool]]:
    """Return (name, array, holds bf16) for each tensor of a frame.

    Raises:
        TypeError: `tensors` is no mapping, a name is no text, or `bf16` is no set of names.
        ValueError: `bf16` names a tensor that is not there.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors must map names to arrays, not be {kind(tensors)}")
    if isinstance(bf16, str | bytes):  # `in` would look for parts of it
        raise TypeError(f"bf16 must be a collection of names, not {reprlib.repr(bf16)}")
    brains = items("bf16", "names", bf16)
    for name in brains:
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"bf16 names {reprlib.repr(name)}, which is not among the tensors")
    for name in tensors:
        if not isinstance(name, str):
            raise TypeError(f"a tensor's name must be text, not {reprlib.repr(name)}")
    return [(name, array, name in brains) for name, array in tensors.items()]
