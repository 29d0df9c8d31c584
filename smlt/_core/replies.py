"""What a Redis or Valkey server's replies are made of, and what can be wrong with them.

Source: the RESP specification, version 2 (redis.io/docs/latest/develop/reference/protocol-spec).
"""

from __future__ import annotations

from typing import Union

Reply = Union[bytes, memoryview, int, None, "ErrorReply", list["Reply"]]

SCRATCH_BYTES = 64 << 10
SMALL_BYTES = 16 << 10
"""Larger bulk strings are received where they will lie, without passing the scratch buffer."""
MAX_DEPTH = 8
MAX_ELEMENTS = 1 << 20
MAX_DIGITS = 20
MAX_LENGTH = 10**17
"""Longer lengths are this one: beyond any limit all the same."""


class RespError(Exception):
    """The other side does not speak the protocol, or says more than was asked for."""


class OversizeError(RespError):
    """A value larger than its receiver accepts."""


class ErrorReply(Exception):
    """An error that the server replied; ``code`` is its first word."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


def unasked() -> RespError:
    return RespError("the server said something that was not asked for")


def endless_line() -> RespError:
    return RespError(f"a line of the reply is longer than {SCRATCH_BYTES} bytes")


def unended() -> RespError:
    return RespError("a bulk string of the reply does not end where it says")


def no_number(text: bytes) -> RespError:
    return RespError(f"the reply has {text[:24]!r} where a number belongs")


def no_resp(text: bytes) -> RespError:
    return RespError(f"the reply begins with {text[:16]!r}, which is no RESP2")


def too_large(nbytes: int) -> OversizeError:
    return OversizeError(f"the reply is larger than the receiver accepts: {nbytes} bytes")


def too_many() -> OversizeError:
    limits = f"{MAX_ELEMENTS} elements, or {MAX_DEPTH} levels"
    return OversizeError(f"the reply has an array of more than {limits}")
