"""What connects to a Redis or Valkey server, made to move shards: nothing joined, nothing copied.

Plain sockets are read and written directly, by ``recv_into`` and ``sendmsg`` whenever the event
loop says they are ready: asyncio's transports join what they are given, and those of Python 3.11
copy what they cannot send at once. TLS has to go through a transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

from smlt.io.link_rate import LinkRate, TokenBucket
from smlt.io.parameter_store import Buffer
from smlt.io.resp import Command, RespError, check
from smlt.io.resp_connection import Connection
from smlt.io.server_address import ServerAddress

BUFFERS_PER_CALL = 512
"""Below IOV_MAX, which is 1024 on Linux and macOS."""
READS_PER_WAKE = 8
TLS_CHUNK_BYTES = 256 << 10
UNIX_SEND_BYTES = 1 << 20


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
                connection.progress()
                connection.reader.buffer_updated(received)
                if not connection.waits:
                    return
        except BlockingIOError:
            return
        except (OSError, RespError) as exc:
            connection.lose(exc)

    def _resume(self) -> None:
        self._loop.add_reader(self._socket, self._readable)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        unsent = [memoryview(buffer) for buffer in buffers]
        watched = False
        up = self._up
        try:
            while unsent:
                if up is not None:
                    await up.turn()
                try:
                    sent = self._socket.sendmsg(
                        unsent[:BUFFERS_PER_CALL] if up is None else _first(unsent, up.piece)
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
                unsent = _after(unsent, sent)
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
        self._connection.progress()
        try:
            self._connection.reader.buffer_updated(nbytes)
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
            check(await connection.exchange(_greeting(address), silence_s=silence_s))
    except BaseException:
        connection.close()
        raise
    return connection


def _greeting(address: ServerAddress) -> list[Command]:
    commands: list[Command] = []
    if address.password:
        user = (address.username.encode(),) if address.username else ()
        commands.append((b"AUTH", *user, address.password.encode()))
    if address.db:
        commands.append((b"SELECT", b"%d" % address.db))
    # A server that is still loading its data, or wants a password, says so now.
    return [*commands, (b"PING",)]


async def _link(connection: Connection, address: ServerAddress, rate: LinkRate | None) -> None:
    loop = asyncio.get_running_loop()
    if address.tls is not None:
        context = await asyncio.to_thread(address.tls.context)
        link = _TlsLink(connection, rate)
        connection.attach(link)
        await loop.create_connection(lambda: link, address.host, address.port, ssl=context)
        return
    sock = await (_unix_socket(address.path) if address.path else _tcp_socket(address))
    connection.attach(_SocketLink(connection, sock, rate))


async def _unix_socket(path: str) -> socket.socket:
    sock = await _connected(socket.AF_UNIX, path)
    # TCP tunes its buffers by itself; a unix socket's default wakes the sender every 200 KB.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BYTES)
    return sock


async def _tcp_socket(address: ServerAddress) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, target in found[:-1]:
        with contextlib.suppress(OSError):
            return _tuned(await _connected(family, target))
    family, _, _, _, target = found[-1]
    return _tuned(await _connected(family, target))


def _tuned(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


async def _connected(family: int, target: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, target)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


def _first(buffers: list[memoryview], nbytes: int) -> list[memoryview]:
    """The beginning of the buffers, so many bytes and not too many buffers."""
    first: list[memoryview] = []
    for buffer in buffers[:BUFFERS_PER_CALL]:
        first.append(buffer[:nbytes])
        nbytes -= first[-1].nbytes
        if not nbytes:
            break
    return first


def _after(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of the buffers once ``sent`` bytes are gone."""
    for i, buffer in enumerate(buffers):
        if sent < buffer.nbytes:
            return [buffer[sent:], *buffers[i + 1 :]]
        sent -= buffer.nbytes
    return []
