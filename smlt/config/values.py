"""From a text or a TOML value to a value of its type, and back into a message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smlt.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])\s*")


class Duration(float):
    """Seconds; a user writes ``90``, ``30m`` or ``1h 30m``."""


class Source(str):
    """A folder, or the URL of a bucket's prefix."""

    __slots__ = ()

    @property
    def is_remote(self) -> bool:
        return self.startswith("s3://")


class Names(tuple[str, ...]):
    """Some names; a user writes a list, or one text with commas."""

    __slots__ = ()


def typed(value: Any, kind: type, source: str) -> Any:
    """Turn the text of an argument or a variable, or a TOML value, into a value of that kind.

    Raises:
        ConfigError: it does not read as one.
    """
    read, wanted = _READERS[kind]
    try:
        return read(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source} is {shown(value)}: give {wanted}.") from None


def shown(value: Any) -> str:
    """A value as a message quotes it."""
    if isinstance(value, Names):
        value = ",".join(value)
    return str(value) if isinstance(value, int | float) else repr(str(value))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _duration(value: Any) -> Duration:
    text = value.strip() if isinstance(value, str) else ""
    parts = _DURATION.findall(text)
    if parts and _DURATION.sub("", text) == "":
        return Duration(sum(float(amount) * _UNITS[unit] for amount, unit in parts))
    return Duration(_number(value))


def _switch(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    word = str(value).lower()
    if word not in words:
        raise ValueError
    return words[word]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _path(value: Any) -> Path:
    if not value:
        raise ValueError
    return Path(value)


def _source(value: Any) -> Source:
    if not value or not isinstance(value, str):
        raise ValueError
    return Source(value)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError
    return tuple(str(text) for text in value)


def _names(value: Any) -> Names:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise TypeError
    return Names(str(name) for name in value)


_READERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    Duration: (_duration, "a duration, as in 90s, 30m or 1h30m"),
    bool: (_switch, "true or false"),
    str: (_text, "a text"),
    Path: (_path, "a path"),
    Source: (_source, "a folder, or s3://bucket/prefix"),
    Names: (_names, "a list, or one text with commas"),
    tuple: (_texts, "a list of NAME=VALUE texts, or a table of them"),
}
