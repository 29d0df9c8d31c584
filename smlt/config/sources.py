"""The places a setting comes from; each value keeps the words that say where it stood."""

from __future__ import annotations

import difflib
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smlt.errors import ConfigError

CONFIG_FILE = "smlt.toml"
TABLES = ("train", "aws")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])\s*")


class Duration(float):
    """Seconds; a user writes ``90``, ``30m`` or ``1h 30m``."""


Layer = dict[str, tuple[Any, str]]
"""Values by name, not yet of their type, each with its source in words."""


def flag(name: str) -> str:
    """What an option is called on the command line."""
    special = {"target": "TARGET", "params": "--param"}
    return special.get(name, "--" + name.replace("_", "-"))


def from_arguments(arguments: Mapping[str, Any]) -> Layer:
    """What the command line gave; None and the empty list mean: not given."""
    return {
        name: (value, flag(name))
        for name, value in arguments.items()
        if value is not None and value != []
    }


def from_environment(
    environment: Mapping[str, str], names: Sequence[str], prefix: str = "SMLT_"
) -> Layer:
    """What variables such as ``SMLT_WORKERS`` hold; ``SMLT_PARAMS`` is split as a shell would."""
    layer: Layer = {}
    for name in names:
        variable = f"{prefix}{name.upper()}"
        value: Any = environment.get(variable, "")
        if value:
            layer[name] = (shlex.split(value) if name == "params" else value, variable)
    return layer


def from_file(file: Path, names: Sequence[str], table: str = "train") -> Layer:
    """What one table of a TOML file holds; nothing where there is no file.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has a table or key that is unknown.
    """
    try:
        text = file.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{file} is not valid TOML: {exc}.") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file} cannot be read: {exc}.") from exc
    for name, value in tables.items():
        if name not in TABLES or not isinstance(value, dict):
            raise ConfigError(
                f"{file} line {_line(text, name)}: {name!r} is out of place; "
                "all options stand in one table, [train], and those about AWS in [aws]."
            )
    layer: Layer = {}
    for key, value in tables.get(table, {}).items():
        name = key.replace("-", "_")
        source = f"{file} line {_line(text, key)} ({key})"
        if name not in names:
            raise ConfigError(f"{source}: there is no such option{_closest(name, names)}.")
        if name == "params" and isinstance(value, dict):
            value = [f"{parameter}={_plain(given)}" for parameter, given in value.items()]
        layer[name] = (value, source)
    return layer


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
    return str(value) if isinstance(value, int | float) else repr(str(value))


def merged(lower: Sequence[str], upper: Sequence[str]) -> tuple[str, ...]:
    """Join ``KEY=VALUE`` texts of two layers; the upper one's win, key by key."""
    by_key = {text.partition("=")[0]: text for text in (*lower, *upper)}
    return tuple(by_key.values())


def _line(text: str, key: str) -> int:
    """The line on which a key or a table of that name begins; tomllib does not tell."""
    pattern = re.compile(rf"""\s*\[?\s*((train|aws)\s*\.\s*)?["']?{re.escape(key)}["']?\s*[].=]""")
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if pattern.match(line)), 1)


def _closest(name: str, names: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {matches[0]}?" if matches else f"; there are {', '.join(names)}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError
    return tuple(str(text) for text in value)


_READERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    Duration: (_duration, "a duration, as in 90s, 30m or 1h30m"),
    bool: (_switch, "true or false"),
    str: (_text, "a text"),
    Path: (_path, "a path"),
    tuple: (_texts, "a list of NAME=VALUE texts, or a table of them"),
}
