"""A parameter store's control operations as they travel through a function, many in one call.

Only metadata does: notices, leases, markers. Shards go from worker to store and back.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from smlt import errors
from smlt.errors import SmltError, StoreError
from smlt.io.parameter_store import ControlStore, Notice

GATEWAY = "gateway"
"""Key of an event that is such a call and no task."""
_OPERATIONS = frozenset(
    ("mark", "check", "first", "announce", "read", "renew", "values", "discard", "sweep")
)
_ANSWER_BYTES = 4 << 20
"""Less than Lambda's 6 MB by what base64 adds."""

Call = tuple[str, dict[str, Any]]
"""A method of ControlStore, and its arguments by name."""


def question(url: str, limit_s: float, calls: Sequence[Call]) -> dict[str, str]:
    """Return the event that asks for these calls on the store of a URL."""
    return {GATEWAY: _packed([url, limit_s, calls])}


def read_question(event: dict[str, str]) -> tuple[str, float, list[Call]]:
    """Return what ``question`` was given."""
    url, limit_s, calls = _unpacked(event[GATEWAY])
    return url, limit_s, [(operation, arguments) for operation, arguments in calls]


async def answer(store: ControlStore, calls: Sequence[Call]) -> dict[str, str]:
    """Make all calls at once, and return what came of each."""
    room = _ANSWER_BYTES // max(1, len(calls))
    return {GATEWAY: _packed(await asyncio.gather(*(_made(store, call, room) for call in calls)))}


def read_answer(said: Mapping[str, str]) -> list[Any]:
    """Return for each call its result, or the error that is to be raised."""
    return [
        _error(kind, value) if kind else _notices(value) if is_read else value
        for kind, is_read, value in _unpacked(said[GATEWAY])
    ]


async def _made(store: ControlStore, call: Call, room: int) -> tuple[str, bool, Any]:
    operation, arguments = call
    is_read = operation == "read"
    try:
        if operation not in _OPERATIONS:
            raise StoreError(f"{operation!r} does not go through the gateway")
        value = await getattr(store, operation)(**arguments)
    except SmltError as exc:
        return type(exc).__name__, is_read, str(exc)
    return "", is_read, _fitting(value, room) if is_read else value


def _fitting(notices: Sequence[Notice], room: int) -> list[tuple[str, str, dict[str, bytes]]]:
    """The first notices, as far as there is room: readers go on from the last one they have."""
    kept: list[tuple[str, str, dict[str, bytes]]] = []
    for notice in notices:
        plain = notice.stream, notice.id, dict(notice.fields)
        room -= len(msgpack.packb(plain))
        if room < 0 and kept:
            break
        kept.append(plain)
    return kept


def _notices(plain: Sequence[tuple[str, str, dict[str, bytes]]]) -> list[Notice]:
    return [Notice(stream, entry, fields) for stream, entry, fields in plain]


def _error(kind: str, message: str) -> SmltError:
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, SmltError):
        return found(message)
    return StoreError(message)


def _packed(plain: Any) -> str:
    return b64encode(msgpack.packb(plain)).decode()


def _unpacked(text: str) -> Any:
    return msgpack.unpackb(b64decode(text))
