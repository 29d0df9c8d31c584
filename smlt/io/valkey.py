"""The parameter store on a Redis or Valkey server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from smlt._core.replies import Reply, RespError
from smlt.errors import FrameError, StoreLostError
from smlt.io.connection_pool import ConnectionPool
from smlt.io.object_store import pieces
from smlt.io.parameter_store import CARRIED, MAX_FRAME_BYTES, Buffer, Notice, ParameterStore
from smlt.io.resp import Argument, Command, check
from smlt.io.resp_connection import Connection
from smlt.io.resp_links import connect
from smlt.io.resp_threads import LARGE_BYTES, FrameThreads
from smlt.io.server_address import ServerAddress
from smlt.io.server_errors import OversizedReplyError, ServerPatience
from smlt.io.valkey_control import ControlClient

T = TypeVar("T")

CONNECTIONS = 8
READERS = 16
LONGEST_BLOCK_S = 5.0


class ValkeyStore(ParameterStore):
    """Shards travel by our own connections, control commands by redis-py.

    It connects when it is first used, and again whenever a connection breaks: nothing else is
    needed then, since every write checks its guard and every read goes on from an id. Belongs to
    one event loop.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        time_limit_s: float,
        connections: int = CONNECTIONS,
        dial: Callable[..., Awaitable[Connection]] = connect,
        threads: bool = False,
    ) -> None:
        """Store where the server is; ``dial`` opens connections as ``resp_links.connect`` does.

        With ``threads``, large frames go past it, where TLS allows.
        """
        self._address = address
        self._dial = dial
        self._patience = ServerPatience(address.masked, time_limit_s)
        self._silence_s = self._patience.silence_s
        self._data = ConnectionPool(self._connect, connections, silence_s=self._silence_s)
        self._large = (
            FrameThreads(address, size=connections, silence_s=self._silence_s)
            if threads and address.tls is None
            else None
        )
        # Blocking reads have connections of their own, or they would keep shards waiting.
        self._readers = ConnectionPool(self._connect, READERS, silence_s=self._silence_s)
        self._control = ControlClient(address, silence_s=self._silence_s)
        self._requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def requests(self) -> Mapping[str, int]:
        return self._requests

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        await self._command(lambda: self._control.set(guard, b"1", _ms(ttl_s)))

    async def check(self, guard: str) -> None:
        if not await self._command(lambda: self._control.exists(guard)):
            raise self._lost(guard)

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
        ttl, name = b"%d" % _ms(ttl_s), stream.encode()
        trim = (b"MAXLEN", b"~", b"%d" % maxlen)
        value = pieces(frame)
        notice: list[Argument] = [b"XADD", name, *trim, b"*", *_flat(fields)]
        if carried:
            write: list[Command] = [[*notice, CARRIED.encode(), value]]
        else:
            write = [(b"SET", key.encode(), value, b"PX", ttl), notice]
        replies = await self._exchange(
            self._data,
            [
                (b"MULTI",),
                (b"GET", guard.encode()),
                *write,
                (b"PEXPIRE", name, ttl),
                (b"EXEC",),
            ],
            nbytes=sum(piece.nbytes for piece in value),
        )
        if self._patience.checked(_marker, replies) is None:
            # What was written has no reader, and expires.
            raise self._lost(guard)

    async def get(
        self, key: str, *, into: memoryview | None = None, max_bytes: int = MAX_FRAME_BYTES
    ) -> memoryview | None:
        command = (b"GET", key.encode())
        try:
            [reply] = await self._exchange(
                self._data,
                [command],
                into=into,
                max_bytes=max_bytes,
                nbytes=0 if into is None else into.nbytes,
            )
        except OversizedReplyError as exc:
            raise FrameError(str(exc)) from exc
        frame = self._patience.checked(_frame, reply)
        if not isinstance(frame, bytes):
            return frame
        if into is None or into.nbytes < len(frame):
            return memoryview(frame)
        into.cast("B")[: len(frame)] = frame
        return into.cast("B")[: len(frame)].toreadonly()

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
        notice = _flat(fields or {}) if stream else []
        stands = await self._command(
            lambda: self._control.set_first([key, guard, stream or key], value, _ms(ttl_s), notice)
        )
        if stands is None:
            raise self._lost(guard)
        return stands

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        marker = await self._command(
            lambda: self._control.append(guard, stream, fields, _ms(ttl_s))
        )
        if marker is None:
            raise self._lost(guard)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        # A dead server is noticed between two slices of a long wait, not only at its end.
        longest_s = min(LONGEST_BLOCK_S, self._silence_s / 2)
        while True:
            block_s = min(end - loop.time(), longest_s)
            block = (b"BLOCK", b"%d" % _ms(block_s)) if block_s > 0 else ()
            names = [name.encode() for name in after]
            ids = [last.encode() for last in after.values()]
            command = (b"XREAD", b"COUNT", b"%d" % limit, *block, b"STREAMS", *names, *ids)
            [reply] = await self._exchange(self._readers, [command])
            if reply is not None or loop.time() >= end:
                return self._patience.checked(_notices, reply)

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._command(lambda: self._control.set(key, value, _ms(ttl_s)))

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._command(lambda: self._control.values(keys))

    async def discard(self, keys: Sequence[str]) -> None:
        if keys:
            await self._exchange(self._data, [(b"UNLINK", *(key.encode() for key in keys))])

    async def sweep(self, prefix: str) -> None:
        await self._command(lambda: self._control.sweep(prefix))

    async def close(self) -> None:
        self._data.close()
        if self._large is not None:
            self._large.close()
        self._readers.close()
        await self._control.close()

    async def _connect(self) -> Connection:
        return await self._dial(self._address, silence_s=self._silence_s)

    async def _exchange(
        self,
        pool: ConnectionPool,
        commands: Sequence[Command],
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
        nbytes: int = 0,
    ) -> list[Reply]:
        """Exchange commands that carry, or ask for, ``nbytes``."""
        by = self._large if self._large is not None and nbytes >= LARGE_BYTES else pool

        async def attempt() -> list[Reply]:
            self._requests["reads" if pool is self._readers else "data"] += 1
            replies = await by.exchange(commands, into=into, max_bytes=max_bytes)
            check(replies)
            return replies

        return await self._patience.insist(attempt)

    async def _command(self, call: Callable[[], Awaitable[T]]) -> T:
        async def attempt() -> T:
            self._requests["control"] += 1
            try:
                return await call()
            except ConnectionError:
                # redis-py reports a wrong password or certificate as a broken connection; ours
                # tell them apart.
                await self._data.exchange([(b"PING",)])
                raise

        return await self._patience.insist(attempt)

    def _lost(self, guard: str) -> StoreLostError:
        return StoreLostError(
            f"the parameter store {self._address.masked} has lost the marker {guard}: it was"
            " restarted or emptied, or the marker expired"
        )


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _flat(fields: Mapping[str, bytes]) -> list[bytes]:
    return [item for name, value in fields.items() for item in (name.encode(), bytes(value))]


def _frame(reply: Reply) -> memoryview | bytes | None:
    if not isinstance(reply, memoryview | bytes | None):
        raise RespError(f"GET was answered with {reply!r:.50}")
    return reply


def _marker(replies: Sequence[Reply]) -> Reply:
    """What the transaction's first command returned: the guard."""
    results = replies[-1]
    # All but MULTI and EXEC have been carried out.
    if not isinstance(results, list) or len(results) != len(replies) - 2:
        raise RespError(f"EXEC was answered with {results!r:.50}")
    return results[0]


def _text(item: Any) -> bytes:
    if not isinstance(item, bytes):
        raise TypeError("a field that is no text")
    return item


def _notices(reply: Any) -> list[Notice]:
    notices = []
    try:
        for stream, entries in reply or ():
            for entry, flat in entries:
                names = [name.decode() for name in flat[::2]]
                fields = dict(zip(names, map(_text, flat[1::2]), strict=True))
                notices.append(Notice(stream.decode(), entry.decode(), fields))
    except (AttributeError, TypeError, ValueError) as exc:
        raise RespError(f"XREAD was answered with {reply!r:.50}") from exc
    return notices
