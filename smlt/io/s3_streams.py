"""Streams of notices in a bucket: names under a prefix of their own, and waiting is polling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping

from smlt.errors import PreconditionError, StoreError
from smlt.io.parameter_store import Notice
from smlt.io.s3_expiring import ExpiringObjects
from smlt.io.s3_notices import NoticeName, pack, unpack
from smlt.io.s3_seen import KEPT, SeenStream


class S3Streams:
    """All streams of a parameter store, as one client writes and reads them."""

    def __init__(self, objects: ExpiringObjects, *, kept: int = KEPT) -> None:
        self._objects = objects
        self._kept = kept
        self._streams: dict[str, SeenStream] = {}
        self._written: dict[str, list[str]] = {}
        """Names that this client has put into a stream that it trims."""
        self._stir = asyncio.Event()
        """Somebody waits for something that nobody has waited for before."""

    async def give(
        self, stream: str, fields: Mapping[str, bytes], ttl_s: float, *, maxlen: int, doing: str
    ) -> None:
        """Add a notice in no order; of this client's, at least the last ``maxlen`` stay."""
        name, body = NoticeName.timed(fields, self._objects.now())
        folder = self._folder(stream)
        await self._objects.write(f"{folder}{name}", doing, body, ttl_s)
        written = self._written.setdefault(stream, [])
        written.append(name)
        if len(written) > 2 * maxlen:
            old, written[:] = written[:-maxlen], written[-maxlen:]
            await self._objects.delete([f"{folder}{each}" for each in old])

    async def append(self, stream: str, fields: Mapping[str, bytes], ttl_s: float) -> None:
        """Take the stream's next number; who comes too late for it takes one behind it."""
        body = pack(fields)
        while True:
            folder, known = self._folder(stream), self._seen(stream)
            start = NoticeName.numbered(known.number) if known.number else ""
            async for name in self._objects.names(folder, f"announce on {stream}", start):
                known.number = max(known.number, NoticeName.number(name))
            number = known.number + 1
            try:
                await self._objects.write(
                    f"{folder}{NoticeName.numbered(number)}",
                    f"announce on {stream}",
                    body,
                    ttl_s,
                    IfNoneMatch="*",
                )
            except PreconditionError:
                continue  # somebody has it, and the next listing tells
            # A gap would be filled by somebody later, where readers have passed.
            known.number = max(known.number, number)
            return

    async def read(self, after: Mapping[str, str], *, wait_s: float, limit: int) -> list[Notice]:
        """See ``ParameterStore.read``."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        behind = {stream: int(last.partition("-")[0]) for stream, last in after.items()}
        while True:
            # Who does not wait wants to know what is there now; who has waited has been looking.
            looks = (self._look(*each, at_once=wait_s <= 0) for each in behind.items())
            await asyncio.gather(*looks)
            found: list[Notice] = []
            for stream, last in behind.items():
                found += self._seen(stream).behind(last, limit)
            if found or loop.time() >= end:
                return found
            due = min(end, *(self._seen(stream).pace.due for stream in behind))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._stir.wait()

    def on_demand(self, streams: Iterable[str]) -> None:
        for stream in streams:
            self._seen(stream).pace.on_demand = True

    @contextlib.contextmanager
    def expecting(self, stream: str) -> Iterator[None]:
        pace = self._seen(stream).pace
        pace.begin(asyncio.get_running_loop().time())
        self._stir.set()
        self._stir = asyncio.Event()
        try:
            yield
        finally:
            pace.end()

    def _seen(self, stream: str) -> SeenStream:
        if stream not in self._streams:
            now = asyncio.get_running_loop().time()
            self._streams[stream] = SeenStream(stream, now, kept=self._kept)
        return self._streams[stream]

    async def _look(self, stream: str, after: int, *, at_once: bool) -> None:
        """List what is new on a stream if that is due, and read what its names do not tell."""
        known, loop = self._seen(stream), asyncio.get_running_loop()
        async with known.listing:
            if known.lacks(after):
                known.forget()
                at_once = True
            # What another reader of this client has just seen is there for all.
            if not at_once and loop.time() < known.pace.due:
                return
            folder = self._folder(stream)
            names = self._objects.names(folder, f"follow {stream}", known.start)
            fresh = [name async for name in names if known.is_new(name)]
            notices = await asyncio.gather(*(self._fields(folder, name) for name in fresh))
            for name, fields in zip(fresh, notices, strict=True):
                known.add(name, fields)
            known.pace.looked(loop.time(), found=bool(fresh))

    async def _fields(self, folder: str, name: str) -> Mapping[str, bytes] | None:
        """What a notice says; None once its time is over, or it was trimmed away."""
        try:
            told = NoticeName.fields(name)
            if told is not None:
                return told
            answer = await self._objects.read(f"{folder}{name}", f"read {name}")
            return None if answer is None else unpack(answer["Body"])
        except ValueError as exc:
            raise StoreError(f"{self._objects.shown} holds a notice that is none: {name}") from exc

    def _folder(self, stream: str) -> str:
        # Streams and values are told apart by the slash, which no quoted key has.
        return f"{self._objects.name(stream)}/"
