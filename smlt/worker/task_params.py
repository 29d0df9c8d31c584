"""Constructor arguments from text (``--param lr=0.02``), typed by the task's annotations."""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from smlt.errors import TaskError
from smlt.worker.task import Task

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_params(cls: type[Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["lr=0.02", "width=32"]`` into constructor arguments.

    Raises:
        TaskError: not of the form KEY=VALUE, unknown, given twice, or of another type.
    """
    params: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise TaskError(f"--param {assignment} is not of the form KEY=VALUE")
        if key in params:
            raise TaskError(f"--param {key} is given twice")
        params[key] = text.strip()
    return bind_params(cls, params)


def bind_params(cls: type[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Check arguments against the constructor's signature, converting texts to its types.

    Raises:
        TaskError: an argument is unknown, missing or of another type.
    """
    accepted = _parameters(cls)
    for name in params:
        if name not in accepted:
            close = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            known = ", ".join(accepted) or "none"
            raise TaskError(f"{cls.__name__} has no parameter {name}: {hint}it takes {known}")
    hints = _hints(cls)
    missing = [
        f"--param {name}=… ({_type_name(hints.get(name, str))})"
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in params
    ]
    if missing:
        raise TaskError(f"{cls.__name__} needs {' and '.join(missing)}")
    return {
        name: _convert(cls, name, value, hints.get(name, _type_of_default(accepted[name])))
        for name, value in params.items()
    }


def _parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    if cls.__init__ in (object.__init__, Task.__init__):
        return {}
    every = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {
        p.name: p
        for p in every
        if p.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__)
    except (NameError, TypeError):
        # Names imported for type checkers only: those parameters go by their defaults.
        return {}


def _type_of_default(parameter: inspect.Parameter) -> Any:
    known = parameter.default is not parameter.empty and parameter.default is not None
    return type(parameter.default) if known else str


def _convert(cls: type[Any], name: str, value: Any, hint: Any) -> Any:
    try:
        return _to(hint, value)
    except (ValueError, TypeError) as exc:
        raise TaskError(
            f"--param {name}={value}: {cls.__name__} takes {name} as {_type_name(hint)}"
        ) from exc


def _to(hint: Any, value: Any) -> Any:
    """Convert a text, or check a value that has already been converted (it may come as JSON)."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _to_first(args, value)
    if origin is Literal:
        return _choice(args, value)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        items = [] if items == [""] else list(items)
        kind = args[0] if args else str
        converted = [_to(kind, item) for item in items]
        return tuple(converted) if tuple in (origin, hint) else converted
    if hint not in _CONVERTERS:
        raise TypeError(f"no text can be a {hint}")
    return _CONVERTERS[hint](value)


def _to_first(hints: Sequence[Any], value: Any) -> Any:
    # None and str take nearly every text, so they are tried first and last.
    for hint in sorted(hints, key=lambda hint: (hint is str) - (hint is type(None))):
        try:
            return _to(hint, value)
        except (ValueError, TypeError):
            continue
    raise ValueError(value)


def _choice(choices: Sequence[Any], value: Any) -> Any:
    for choice in choices:
        if value == choice or value == str(choice):
            return choice
    raise ValueError(value)


def _int(value: Any) -> int:
    if isinstance(value, str):
        return int(value.replace("_", ""))
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    number = float(value)
    if math.isnan(number):
        raise ValueError(value)
    return number


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in _BOOLS:
        raise ValueError(value)
    return _BOOLS[str(value).lower()]


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _none(value: Any) -> None:
    if value is not None and str(value).lower() not in ("none", "null"):
        raise ValueError(value)


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _str,
    type(None): _none,
}


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in get_args(hint))
    if hint is type(None):
        return "none"
    if get_origin(hint) is not None:
        inner = ", ".join(_type_name(arg) for arg in get_args(hint) if arg is not ...)
        return f"{get_origin(hint).__name__} of {inner}"
    return getattr(hint, "__name__", str(hint))
