"""How messages become plain fields and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, Self, get_type_hints


class Plain:
    """Mixin: a dataclass that turns into plain dicts and back."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain fields; unknown ones, of a newer version, are ignored."""
        kinds: dict[str, Any] = _kinds(cls)  # type: ignore[arg-type]
        known = {name: data[name] for name in kinds if name in data}
        for name, value in known.items():
            nested = kinds[name]
            if nested is not None and isinstance(value, Mapping):
                known[name] = nested.from_dict(value)
        return cls(**known)


@cache  # a client reads a thousand leases a second, and looking up type hints takes 0.2 ms
def _kinds(cls: Any) -> dict[str, Any]:
    """The fields of a message, each with the dataclass that its value is, if it is one."""
    hints = get_type_hints(cls)
    return {f.name: _dataclass_in(hints[f.name]) for f in fields(cls)}


def _dataclass_in(hint: Any) -> Any:
    """The dataclass named by a type hint such as ``Plan`` or ``Plan | None``, if there is one."""
    for candidate in (hint, *getattr(hint, "__args__", ())):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None
