"""The places a setting comes from; each value keeps the words that say where it stood."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from smlt.config.values import typed
from smlt.errors import ConfigError

CONFIG_FILE = "smlt.toml"
TABLES = ("train", "aws")

Layer = dict[str, tuple[Any, str]]
"""Values by name, not yet of their type, each with its source in words."""


def flag(name: str) -> str:
    """What an option is called on the command line."""
    special = {"target": "TARGET", "params": "--param"}
    return special.get(name, "--" + name.replace("_", "-"))


def kinds_of(table: type) -> dict[str, type]:
    """Return the plain type of each field but ``sources``: ``int`` for ``int | None``."""
    hints = get_type_hints(table)
    return {
        one.name: _plain_type(hints[one.name]) for one in fields(table) if one.name != "sources"
    }


def _plain_type(hint: Any) -> type:
    if get_origin(hint) is tuple:
        return tuple
    kind: type = next((kind for kind in get_args(hint) if kind is not NoneType), hint)
    return kind


def layers(
    table: str,
    arguments: Mapping[str, Any],
    names: Collection[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> list[Layer]:
    """Return what ``smlt.toml``, the environment and the arguments say, the strongest last.

    Args:
        table: of the file; the variables of all tables but the first begin with its name.
        arguments: by name; those that are no settings of the table are left out.
        names: the settings there are.
        environment: by default the process's own.
        folder: by default the current one.

    Raises:
        ConfigError: the file has an unknown key or is no TOML.
    """
    variables = os.environ if environment is None else environment
    prefix = "SMLT_" if table == TABLES[0] else f"SMLT_{table.upper()}_"
    return [
        from_file((folder or Path()) / CONFIG_FILE, names, table),
        from_environment(variables, names, prefix),
        from_arguments({name: arguments[name] for name in names if name in arguments}),
    ]


def join(
    layers: Iterable[Layer], kinds: Mapping[str, type]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Join layers, the strongest last; return the values by name, and where each stood.

    Raises:
        ConfigError: a value does not read as its type.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        for name, (value, source) in layer.items():
            given = typed(value, kinds[name], source)
            # --param lr=0.1 changes one parameter of the file's, not all of them.
            values[name] = merged(values.get(name, ()), given) if name == "params" else given
            sources[name] = source
    return values, sources


def from_arguments(arguments: Mapping[str, Any]) -> Layer:
    """What the command line gave; None and the empty list mean: not given."""
    return {
        name: (value, flag(name))
        for name, value in arguments.items()
        if value is not None and value != []
    }


def from_environment(
    environment: Mapping[str, str], names: Collection[str], prefix: str = "SMLT_"
) -> Layer:
    """What variables such as ``SMLT_WORKERS`` hold; ``SMLT_PARAMS`` is split as a shell would."""
    layer: Layer = {}
    for name in names:
        variable = f"{prefix}{name.upper()}"
        value: Any = environment.get(variable, "")
        if value:
            layer[name] = (shlex.split(value) if name == "params" else value, variable)
    return layer


def from_file(file: Path, names: Collection[str], table: str = "train") -> Layer:
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


def merged(lower: Sequence[str], upper: Sequence[str]) -> tuple[str, ...]:
    """Join ``KEY=VALUE`` texts of two layers; the upper one's win, key by key."""
    by_key = {text.partition("=")[0]: text for text in (*lower, *upper)}
    return tuple(by_key.values())


def _line(text: str, key: str) -> int:
    """The line on which a key or a table of that name begins; tomllib does not tell."""
    pattern = re.compile(rf"""\s*\[?\s*((train|aws)\s*\.\s*)?["']?{re.escape(key)}["']?\s*[].=]""")
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if pattern.match(line)), 1)


def _closest(name: str, names: Collection[str]) -> str:
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {matches[0]}?" if matches else f"; there are {', '.join(names)}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
