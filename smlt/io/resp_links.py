"""What connects to a Redis or Valkey server, made to move shards: nothing joined, nothing copied.

Plain sockets are read and written directly, by ``recv_into`` and ``sendmsg`` whenever the event
loop says they are ready: asyncio's transports join what they are given, and those of Python 3.11
copy what they cannot send at once. TLS has to go through a transport. Large frames move in threads
(``resp_threads``), unless their rate is limited or TLS is spoken.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from smlt._core.replies import RespError
from smlt.io.link_rate import LinkRate, TokenBucket
from smlt.io.parameter_store import Buffer
from smlt.io.resp import check
from smlt.io.resp_connection import Connection
from smlt.io.server_address import ServerAddress
from smlt.io.server_socket import BUFFERS_PER_CALL, greeting, open_socket, unsent

READS_PER_WAKE = 8
TLS_CHUNK_BYTES = 256 << 10


class _SocketLink:
    """A connected, non-blocking socket, read as long as it lives so that its end is noticed."""

    def __init__(
        self, connection: Connection, sock: socket.socket, rate: LinkRate | None = None
    ) -> None:
        self._connection = connection
        self._socket = sock
        self._up = None if rate is None else rate.up
        self._down = None if rate is None else rate.down
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._resuming: asyncio.TimerHandle | None = None

    def _readable(self) -> None:
        connection, down = self._connection, self._down
        try:
            for _ in range(READS_PER_WAKE):
                if down is not None and (delay_s := down.delay_s()) > 0:
                    self._loop.remove_reader(self._socket)
                    self._resuming = self._loop.call_later(delay_s, self._resume)
                    return
                room = connection.reader.get_buffer()
                received = self._socket.recv_into(room if down is None else room[: down.piece])
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                if down is not None:
                    down.spend(received)
                connection.received(received)
                if not connection.waits:
                    return
        except BlockingIOError:
            return
        except (OSError, RespError) as exc:
            connection.lose(exc)

    def _resume(self) -> None:
        self._loop.add_reader(self._socket, self._readable)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        left = [memoryview(buffer) for buffer in buffers]
        watched = False
        up = self._up
        try:
            while left:
                if up is not None:
                    await up.turn()
                try:
                    sent = self._socket.sendmsg(
                        left[:BUFFERS_PER_CALL] if up is None else _first(left, up.piece)
                    )
                except BlockingIOError:
                    if not watched:
                        self._loop.add_writer(self._socket, self._connection.wake)
                        watched = True
                    await self._connection.wait()
                    continue
                if up is not None:
                    up.spend(sent)
                self._connection.progress()
                left = unsent(left, sent)
        finally:
            if watched and self._connection.usable:
                self._loop.remove_writer(self._socket)

    def close(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()


class _TlsLink(asyncio.BufferedProtocol):
    """A TLS transport that decrypts into the reader's buffers."""

    def __init__(self, connection: Connection, rate: LinkRate | None = None) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._up = None if rate is None else rate.up
        self._down = None if rate is None else rate.down

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._connection.reader.get_buffer()
        return room if self._down is None else room[: self._down.piece]

    def buffer_updated(self, nbytes: int) -> None:
        if self._down is not None:
            self._receive_later(self._down, nbytes)
        try:
            self._connection.received(nbytes)
        except RespError as exc:
            self._connection.lose(exc)

    def _receive_later(self, down: TokenBucket, nbytes: int) -> None:
        down.spend(nbytes)
        delay_s = down.delay_s()
        if delay_s > 0 and self._transport is not None:
            self._transport.pause_reading()
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s, self._receive_on)

    def _receive_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lose(exc or ConnectionResetError("the server closed the connection"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._connection.progress()
        self._connection.wake()

    async def send(self, buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            view = memoryview(buffer)
            step = TLS_CHUNK_BYTES if self._up is None else self._up.piece
            for start in range(0, len(view), step):
                while self._paused:
                    await self._connection.wait()
                if self._up is not None:
                    await self._up.turn()
                    self._up.spend(len(view[start : start + step]))
                if self._transport is not None:
                    self._transport.write(view[start : start + step])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(
    address: ServerAddress, *, silence_s: float, link: LinkRate | None = None
) -> Connection:
    """Connect, authenticate and select the database; ``link`` limits the rate of what follows.

    Raises:
        OSError: the server cannot be reached within ``silence_s`` seconds, or TLS fails.
        ErrorReply: the server refuses the user or the database.
    """
    connection = Connection()
    try:
        async with asyncio.timeout(silence_s):
            await _link(connection, address, link)
            check(await connection.exchange(greeting(address), silence_s=silence_s))
    except BaseException:
        connection.close()
        raise
    return connection


async def _link(connection: Connection, address: ServerAddress, rate: LinkRate | None) -> None:
    loop = asyncio.get_running_loop()
    if address.tls is not None:
        context = await asyncio.to_thread(address.tls.context)
        link = _TlsLink(connection, rate)
        connection.attach(link)
        await loop.create_connection(lambda: link, address.host, address.port, ssl=context)
        return
    sock = await open_socket(address)
    connection.attach(_SocketLink(connection, sock, rate))


def _first(buffers: list[memoryview], nbytes: int) -> list[memoryview]:
    """The beginning of the buffers, so many bytes and not too many buffers."""
    first: list[memoryview] = []
    for buffer in buffers[:BUFFERS_PER_CALL]:
        first.append(buffer[:nbytes])
        nbytes -= first[-1].nbytes
        if not nbytes:
            break
    return first
