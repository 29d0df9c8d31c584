"""What one client has seen of a stream in a bucket, and what of it its memory need not keep."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping

from smlt.io.parameter_store import Notice
from smlt.io.s3_notices import NoticeName
from smlt.io.s3_polling import Pace

KEPT = 1000
"""Notices that are kept although a reader has gone past them: another one may come behind him."""


class SeenStream:
    """Notices in the order in which this client saw them, until they have been read.

    The id of an ordered notice is its number in the stream. Of the others it is a position in what
    this client has seen: it means nothing to another one.
    """

    def __init__(self, stream: str, now: float, *, kept: int = KEPT) -> None:
        self.pace = Pace(now)
        self.listing = asyncio.Lock()
        self.number = 0
        """The last one of the ordered notices that are known to be there, read or not."""
        self._stream = stream
        self._kept = kept
        self.forget()

    def forget(self) -> None:
        """Know nothing any more: all that is there is new again."""
        self._newest = ""
        self._names: set[str] = set()
        self._most_names = self._kept
        self._places: list[int] = []
        self._notices: list[Notice] = []
        self._place = 0
        self._gone = 0

    @property
    def start(self) -> str:
        """The name behind which anything new lies."""
        return NoticeName.horizon(self._newest)

    def is_new(self, name: str) -> bool:
        return name > self.start and name not in self._names

    def lacks(self, after: int) -> bool:
        """Whether notices behind an id were forgotten that the bucket could tell again."""
        return after < self._gone and bool(NoticeName.number(self._newest))

    def add(self, name: str, fields: Mapping[str, bytes] | None) -> None:
        """Note a new name, and what it says; None if that is over."""
        self._names.add(name)
        self._newest = max(self._newest, name)
        number = NoticeName.number(name)
        self.number = max(self.number, number)
        if fields is not None:
            self._place = number or self._place + 1
            self._places.append(self._place)
            self._notices.append(Notice(self._stream, f"{self._place}-0", fields))
        if len(self._names) > self._most_names:
            # No listing begins before the start, and none of a whole folder asks for those.
            start = self.start
            self._names = {name for name in self._names if name > start}
            self._most_names = max(self._kept, 2 * len(self._names))

    def behind(self, after: int, limit: int) -> list[Notice]:
        """Return the notices behind an id, oldest first; a reader has those up to it."""
        read = bisect_right(self._places, after)
        found = self._notices[read : read + limit]
        if read > 2 * self._kept:
            old = read - self._kept
            self._gone = self._places[old - 1]
            del self._places[:old], self._notices[:old]
        return found
