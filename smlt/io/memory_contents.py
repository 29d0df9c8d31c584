"""What the stores in this process's memory hold, by name: all clients of a name share it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stream:
    ids: list[int] = field(default_factory=list)
    notices: list[Mapping[str, bytes]] = field(default_factory=list)
    expires: float = float("inf")


@dataclass(slots=True)
class Contents:
    """What all clients of one name share; guarded by the lock, since loops may be in threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    waiting: dict[asyncio.Future[None], None] = field(default_factory=dict)
    """In the order in which they are woken: simulated runs must not depend on addresses."""
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


CONTENTS: dict[str, Contents] = {}


def forget(name: str) -> None:
    """Empty the stores of this name, as a server does that was restarted."""
    contents = contents_of(name)
    with contents.lock:
        contents.objects.clear()
        contents.values.clear()
        contents.streams.clear()


def contents_of(name: str) -> Contents:
    return CONTENTS.setdefault(name, Contents())
