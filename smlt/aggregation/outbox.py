"""What a rank has put for others, until the last of them says that it has it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from smlt.errors import SmltError

OUTSTANDING = 1000
"""Parcels of one rank that others may have yet to fetch."""
_OUTSTANDING_BYTES = 256 << 20


@dataclass(slots=True)
class _Parcel:
    nbytes: int
    readers: set[int]
    fetched: asyncio.Future[None]


class Outbox:
    """The parcels of one rank that somebody has yet to fetch."""

    def __init__(self) -> None:
        self._parcels: dict[str, _Parcel] = {}
        self._changed = asyncio.Event()
        self._failure: SmltError | None = None

    def add(self, key: str, nbytes: int, readers: set[int]) -> asyncio.Future[None]:
        """Take in a parcel; the future says that the last reader has it, at once if there is none.

        The readers are taken over, too.
        """
        fetched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if readers:
            self._parcels[key] = _Parcel(nbytes, readers, fetched)
        else:
            fetched.set_result(None)
        return fetched

    def fetched(self, key: str, reader: int) -> bool:
        """Note that a reader has a parcel; return whether nobody needs it any more.

        Said twice it changes nothing.
        """
        parcel = self._parcels.get(key)
        if parcel is None:
            return False
        parcel.readers.discard(reader)
        if parcel.readers:
            return False
        del self._parcels[key]
        self._changed.set()
        if not parcel.fetched.done():
            parcel.fetched.set_result(None)
        return True

    async def has_room(self) -> None:
        """Wait until one more may be added.

        Raises:
            SmltError: what ``fail`` was told.
        """
        while self._failure is None and self._is_full():
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def oldest(self) -> tuple[str, int]:
        """The parcel that has waited the longest, and a reader that it waits for."""
        key, parcel = next(iter(self._parcels.items()))
        return key, min(parcel.readers)

    def fail(self, error: SmltError) -> None:
        """Make every present and future wait raise this error."""
        self._failure = error
        for parcel in self._parcels.values():
            if not parcel.fetched.done():
                parcel.fetched.set_exception(error)
                parcel.fetched.exception()  # a parcel that nobody waits for: no cause of a warning
        self._changed.set()

    def _is_full(self) -> bool:
        nbytes = sum(parcel.nbytes for parcel in self._parcels.values())
        return len(self._parcels) >= OUTSTANDING or nbytes >= _OUTSTANDING_BYTES
