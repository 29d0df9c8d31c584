"""A parameter store in the memory of one process: for tests, simulation and a single rank."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from smlt.errors import FrameError, StoreLostError
from smlt.io.memory_contents import Stream, contents_of
from smlt.io.object_store import pieces
from smlt.io.parameter_store import CARRIED, MAX_FRAME_BYTES, Buffer, Notice, ParameterStore

Clock = Callable[[], float]


class MemoryParameterStore(ParameterStore):
    """A parameter store that lives as long as the process; clients of one name share it.

    Leases expire by the clock that is handed in, equal for all clients of a name. Waiting reads
    take their time from the event loop, so a loop with simulated time simulates them too.
    """

    def __init__(self, name: str, clock: Clock = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._contents = contents_of(name)

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        with self._contents.lock:
            self._drop_expired()
            self._set(guard, b"1", ttl_s)

    async def check(self, guard: str) -> None:
        with self._contents.lock:
            self._check(guard)

    async def put(
        self,
        key: str,
        frame: Sequence[Buffer],
        *,
        stream: str,
        fields: Mapping[str, bytes],
        guard: str,
        ttl_s: float,
        maxlen: int,
        carried: bool = False,
    ) -> None:
        value = b"".join(pieces(frame))
        with self._contents.lock:
            self._check(guard)
            if carried:
                fields = {**fields, CARRIED: value}
            else:
                self._set(key, value, ttl_s)
            self._append(stream, fields, ttl_s, maxlen)

    async def get(
        self,
        key: str,
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
    ) -> memoryview | None:
        with self._contents.lock:
            value = self._value(key)
        if value is None:
            return None
        if len(value) > max_bytes:
            raise FrameError(f"{key} in {self.url} has {len(value)} bytes, not {max_bytes}")
        if into is None or into.nbytes < len(value):
            return memoryview(value)
        view = into.cast("B")[: len(value)]
        view[:] = value
        return view.toreadonly()

    async def first(
        self,
        key: str,
        value: bytes,
        *,
        guard: str,
        ttl_s: float,
        stream: str = "",
        fields: Mapping[str, bytes] | None = None,
    ) -> bytes:
        with self._contents.lock:
            self._check(guard)
            winner = self._value(key)
            if winner is not None:
                return winner
            self._set(key, value, ttl_s)
            if stream:
                self._append(stream, fields or {}, ttl_s)
            return value

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        with self._contents.lock:
            self._check(guard)
            self._append(stream, fields, ttl_s)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        contents = self._contents
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while True:
                    with contents.lock:
                        found = self._behind(after, limit)
                        if found or wait_s <= 0:
                            return found
                        news = asyncio.get_running_loop().create_future()
                        contents.waiting[news] = None
                    try:
                        await news
                    finally:
                        with contents.lock:
                            contents.waiting.pop(news, None)
        return []

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        with self._contents.lock:
            self._set(key, value, ttl_s)

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._contents.lock:
            return [self._value(key) for key in keys]

    async def discard(self, keys: Sequence[str]) -> None:
        with self._contents.lock:
            for key in keys:
                self._contents.values.pop(key, None)
                self._contents.streams.pop(key, None)

    async def sweep(self, prefix: str) -> None:
        with self._contents.lock:
            for kept in (self._contents.values, self._contents.streams):
                for key in [key for key in kept if key.startswith(prefix)]:
                    del kept[key]

    async def close(self) -> None:
        """Do nothing: the contents belong to all clients of the name."""

    def _check(self, guard: str) -> None:
        if self._value(guard) is None:
            raise StoreLostError(
                f"{self.url} has lost the marker {guard}: it was emptied, or the marker expired"
            )

    def _value(self, key: str) -> bytes | None:
        value, expires = self._contents.values.get(key, (None, 0.0))
        return value if expires > self._clock() else None

    def _set(self, key: str, value: bytes, ttl_s: float) -> None:
        self._contents.values[key] = (value, self._clock() + ttl_s)

    def _append(
        self, name: str, fields: Mapping[str, bytes], ttl_s: float, maxlen: int = 0
    ) -> None:
        stream = self._contents.streams.get(name)
        if stream is None or stream.expires <= self._clock():
            stream = self._contents.streams[name] = Stream()
        stream.expires = self._clock() + ttl_s
        stream.ids.append(next(self._contents.ids))
        stream.notices.append(dict(fields))
        if maxlen and len(stream.ids) > maxlen:
            del stream.ids[:-maxlen], stream.notices[:-maxlen]
        for news in self._contents.waiting:
            _wake(news)
        self._contents.waiting.clear()

    def _behind(self, after: Mapping[str, str], limit: int) -> list[Notice]:
        found = []
        for name, last in after.items():
            stream = self._contents.streams.get(name)
            if stream is None or stream.expires <= self._clock():
                continue
            start = bisect.bisect_right(stream.ids, int(last.partition("-")[0]))
            end = start + limit
            found += [
                Notice(name, f"{number}-0", fields)
                for number, fields in zip(
                    stream.ids[start:end], stream.notices[start:end], strict=True
                )
            ]
        return found

    def _drop_expired(self) -> None:
        now = self._clock()
        contents = self._contents
        contents.values = {k: v for k, v in contents.values.items() if v[1] > now}
        contents.streams = {k: s for k, s in contents.streams.items() if s.expires > now}


def _wake(news: asyncio.Future[None]) -> None:
    """Resolve the future in its own loop, which may run in another thread."""

    def resolve() -> None:
        if not news.done():
            news.set_result(None)

    loop = news.get_loop()
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is here:
        resolve()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(resolve)
