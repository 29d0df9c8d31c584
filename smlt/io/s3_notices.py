"""What the names of notices say: a stream in a bucket is a folder of small objects."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping

import msgpack

OVERLAP_S = 120.0
"""How much later than its name says a notice may come to be listed: a call and its repeats."""
_ORDERED, _TIMED = "n", "t"
_DIGITS = 12
_TICKS_S = 1_000_000
_LONGEST_TEXT = 500
"""Of fields within a name: S3 allows 1,024 bytes for prefix, stream and all."""


class NoticeName:
    """Two kinds of names.

    ``n000000000007`` has a number, which one writer alone can take: all readers see one order. The
    control stream has these, with their fields in the object. ``t<time>.<random>[.<fields>]`` is
    for shards, by S3's clock: nobody waits for a turn, and a listing tells all.
    """

    @staticmethod
    def numbered(number: int) -> str:
        return f"{_ORDERED}{number:0{_DIGITS}d}"

    @staticmethod
    def timed(fields: Mapping[str, bytes], now: float) -> tuple[str, bytes]:
        """Return a name, and what the object must hold because the name has no room for it.

        Args:
            fields: of the notice.
            now: seconds since 1970 by S3's clock.
        """
        packed = pack(fields)
        ticks = int(now * _TICKS_S)
        head = f"{_TIMED}{ticks:016x}.{secrets.token_hex(6)}"
        text = base64.urlsafe_b64encode(packed).decode().rstrip("=")
        return (head, packed) if len(text) > _LONGEST_TEXT else (f"{head}.{text}", b"")

    @staticmethod
    def number(name: str) -> int:
        """Return the number of an ordered notice, 0 for another."""
        return int(name[1:]) if name.startswith(_ORDERED) else 0

    @staticmethod
    def fields(name: str) -> Mapping[str, bytes] | None:
        """Return what the name tells; None where the object does.

        Raises:
            ValueError: it is no name of a notice.
        """
        _, *rest = name.split(".")
        if len(rest) < 2:
            return None
        text = rest[1]
        return unpack(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))

    @staticmethod
    def horizon(newest: str) -> str:
        """Return the name behind which all lies that may be written once ``newest`` is there."""
        if not newest.startswith(_TIMED):
            return newest
        ticks = int(newest[1:17], 16) - int(OVERLAP_S * _TICKS_S)
        return f"{_TIMED}{max(0, ticks):016x}"


def pack(fields: Mapping[str, bytes]) -> bytes:
    return bytes(msgpack.packb({name: bytes(value) for name, value in fields.items()}))


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the fields of a notice.

    Raises:
        ValueError: they are none.
    """
    return {str(name): bytes(value) for name, value in msgpack.unpackb(data).items()}
