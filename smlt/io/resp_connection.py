"""One connection to a Redis or Valkey server: exchanges, with a limit on silence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from smlt._core.replies import Reply
from smlt._core.reply_reader import ReplyReader
from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer
from smlt.io.resp import Command, encode


class Link(Protocol):
    """What carries the bytes; see ``resp_links``."""

    async def send(self, buffers: Sequence[Buffer]) -> None: ...

    def close(self) -> None: ...


class Connection:
    """One exchange at a time; after an error, or an exchange cut short, it is closed for good."""

    def __init__(self) -> None:
        self.reader = ReplyReader()
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._progress = 0.0
        self._silence_s = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        return self._failure is None

    @property
    def waits(self) -> bool:
        """Whether replies are still to come."""
        return self.reader.missing > 0 and self._failure is None

    async def exchange(
        self,
        commands: Sequence[Command],
        *,
        silence_s: float,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
    ) -> list[Reply]:
        """Send the commands and return their replies, errors among them as ``ErrorReply``.

        The time limit is on silence, not on the transfer, which a slow link may draw out.

        Raises:
            TimeoutError: no byte has moved for ``silence_s`` seconds.
            OSError: the connection broke.
            RespError: the reply is malformed, or larger than ``max_bytes``.
        """
        if self._failure is not None or self._link is None:
            raise self._failure or ConnectionError("there is no connection yet")
        reader = self.reader
        reader.expect(len(commands), into=into, max_bytes=max_bytes)
        self.progress()
        self._silence_s = silence_s
        if self._watch is None:
            self._watch = self._loop.call_later(silence_s, self._look)
        try:
            await self._link.send(encode(commands))
            while reader.missing:
                await self.wait()
        except BaseException as exc:
            self.lose(exc if isinstance(exc, Exception) else ConnectionError("cut short"))
            raise
        return reader.replies

    def attach(self, link: Link) -> None:
        """Use the link: it fills the reader's buffer, and calls ``received`` and ``lose``."""
        self._link = link

    def progress(self) -> None:
        """Note that bytes have moved."""
        self._progress = self._loop.time()

    def received(self, nbytes: int) -> None:
        """Go on with bytes that were received into the reader's buffer.

        Raises:
            RespError: they are no replies, or none that was asked for.
        """
        self.progress()
        self.reader.buffer_updated(nbytes)
        if not self.reader.missing:
            self.wake()

    async def wait(self) -> None:
        """Return at the next ``wake``, or raise why the connection was lost."""
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        await self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self, failure: Exception) -> None:
        """Close for good; an exchange under way raises the failure."""
        if self._failure is not None:
            return
        self._failure = failure
        if self._watch is not None:
            self._watch.cancel()
        if self._link is not None:
            self._link.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(failure)

    def close(self) -> None:
        self.lose(ConnectionError("the connection was closed"))

    def _look(self) -> None:
        """Look after the exchange under way: one timer outlives many exchanges."""
        self._watch = None
        if not self.reader.missing:
            return
        left = self._progress + self._silence_s - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self.lose(TimeoutError(f"silent for {self._silence_s:g} s"))
