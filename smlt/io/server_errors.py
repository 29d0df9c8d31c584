"""What to do about a server's failures: try again, and for how long, or say what is wrong."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from smlt._core.replies import ErrorReply, OversizeError, RespError
from smlt.errors import (
    ConfigError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)

T = TypeVar("T")

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0

_PASSING = {"LOADING", "BUSY", "MASTERDOWN", "READONLY", "TRYAGAIN", "CLUSTERDOWN", "UNKILLABLE"}
_PASSING |= {"ASK"}
"""A server that is starting, failing over or busy, or a slot of a cluster on its way."""
_REFUSED = {"NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "NOPROTO"}
_REFUSED_WORDS = ("AUTH", "DB index")
"""What the refusals say whose code is only ERR."""


class MovedError(StoreError):
    """The slot of a key is on another node of the cluster."""


class OversizedReplyError(StoreError):
    """A reply is larger than any that the command can have."""


class ServerPatience:
    """Repeats what failed for a passing reason until the time limit, and translates the rest."""

    def __init__(self, server: str, time_limit_s: float) -> None:
        self._server = server
        self._time_limit_s = time_limit_s
        # Half the limit, so that a connection that died without a word leaves time for another.
        self.silence_s = time_limit_s / 2
        """How long one attempt may wait for the server to say anything."""

    async def insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what the attempt returns, at last.

        Raises:
            StoreUnreachableError: it has failed for a passing reason until the time limit.
            StoreFullError, ConfigError, StoreError: it failed for another one.
        """
        loop = asyncio.get_running_loop()
        since: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await attempt()
            except (OSError, ErrorReply, RespError) as exc:
                if not _passes(exc):
                    raise self._translated(exc) from exc
                if since is None:
                    since = loop.time()
                    if isinstance(exc, TimeoutError):
                        since -= self.silence_s
                left_s = since + self._time_limit_s - loop.time()
                if left_s <= 0:
                    raise StoreUnreachableError(
                        f"the parameter store {self._server} cannot be reached within"
                        f" {self._time_limit_s:g} s: {_reason(exc)}"
                    ) from exc
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def checked(self, read: Callable[[Any], T], reply: Any) -> T:
        """Return what ``read`` makes of a reply.

        Raises:
            StoreError: it is none that the command can have.
        """
        try:
            return read(reply)
        except RespError as exc:
            raise self._translated(exc) from exc

    def _translated(self, exc: Exception) -> Exception:
        server = f"the parameter store {self._server}"
        if isinstance(exc, OversizeError):
            return OversizedReplyError(f"{server} holds more than was expected: {exc}")
        if isinstance(exc, RespError):
            return StoreError(f"{server} does not speak RESP: {exc}")
        if isinstance(exc, ssl.SSLError):
            return ConfigError(f"{server} cannot be trusted over TLS: {_reason(exc)}")
        code = exc.code if isinstance(exc, ErrorReply) else ""
        if code == "OOM":
            return StoreFullError(
                f"{server} has no memory left: raise its maxmemory, or use fewer workers"
            )
        if code == "MOVED":
            return MovedError(
                f"{server} is a node of a cluster and has not got this key: add ?cluster=true"
            )
        if code in _REFUSED or any(word in str(exc) for word in _REFUSED_WORDS):
            return ConfigError(f"{server} refuses user, password or database: {exc}")
        return StoreError(f"{server} refused a command: {exc}")


def _passes(exc: Exception) -> bool:
    if isinstance(exc, ErrorReply):
        return exc.code in _PASSING or "max number of clients" in str(exc)
    if isinstance(exc, ssl.SSLError):
        return isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
    return isinstance(exc, OSError)


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "it does not answer"
    if isinstance(exc, ssl.SSLError):
        told = getattr(exc, "verify_message", "") or getattr(exc, "reason", "")
        return str(told or exc)
    if isinstance(exc, OSError) and exc.errno:
        # asyncio puts the address into strerror; the errors of name resolution are negative.
        return os.strerror(exc.errno) if exc.errno > 0 else str(exc.strerror)
    return str(exc) or type(exc).__name__
