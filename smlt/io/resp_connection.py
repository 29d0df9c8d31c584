"""One connection to a Redis or Valkey server, made to move shards: nothing joined, nothing copied.

Plain sockets are read and written directly, by ``recv_into`` and ``sendmsg`` whenever the event
loop says they are ready; TLS goes through asyncio's transport, which does not allow that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Protocol

from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer
from smlt.io.resp import (
    Command,
    Reply,
    ReplyReader,
    RespError,
    check,
    encode,
)
from smlt.io.server_address import ServerAddress

BUFFERS_PER_CALL = 512
"""Below IOV_MAX, which is 1024 on Linux and macOS."""
READS_PER_WAKE = 8
TLS_CHUNK_BYTES = 256 << 10
UNIX_SEND_BYTES = 1 << 20


class _Link(Protocol):
    async def send(self, buffers: Sequence[Buffer]) -> None: ...

    def close(self) -> None: ...


class Connection:
    """One exchange at a time; after an error, or an exchange cut short, it is closed for good."""

    def __init__(self) -> None:
        self.reader = ReplyReader(self._on_reply)
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._replies: list[Reply] = []
        self._wanted = 0
        self._progress = 0.0
        self._silence_s = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        return self._failure is None

    @property
    def waits(self) -> bool:
        """Whether replies are still to come."""
        return self._wanted > 0 and self.usable

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
        self._replies, self._wanted = [], len(commands)
        self.reader.expect(into=into, max_bytes=max_bytes)
        self.progress()
        self._silence_s = silence_s
        self._watch = self._loop.call_later(silence_s, self._look)
        try:
            await self._link.send(encode(commands))
            while self._wanted:
                await self.wait()
        except BaseException as exc:
            self.lose(exc if isinstance(exc, Exception) else ConnectionError("cut short"))
            raise
        finally:
            self._watch.cancel()
        return self._replies

    def attach(self, link: _Link) -> None:
        """Use the link, which fills ``reader`` and calls ``progress``, ``wake`` and ``lose``."""
        self._link = link

    def progress(self) -> None:
        """Note that bytes have moved."""
        self._progress = self._loop.time()

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
        if self._link is not None:
            self._link.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(failure)

    def close(self) -> None:
        self.lose(ConnectionError("the connection was closed"))

    def _on_reply(self, reply: Reply) -> None:
        self._replies.append(reply)
        self._wanted -= 1
        if self._wanted < 0:
            self.lose(RespError("the server said something that was not asked for"))
        elif not self._wanted:
            self.wake()

    def _look(self) -> None:
        left = self._progress + self._silence_s - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
        else:
            self.lose(TimeoutError(f"silent for {self._silence_s:g} s"))


class _SocketLink:
    """A connected, non-blocking socket, read as long as it lives so that its end is noticed."""

    def __init__(self, connection: Connection, sock: socket.socket) -> None:
        self._connection = connection
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    def _readable(self) -> None:
        connection = self._connection
        try:
            for _ in range(READS_PER_WAKE):
                received = self._socket.recv_into(connection.reader.get_buffer())
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                connection.progress()
                connection.reader.buffer_updated(received)
                if not connection.waits:
                    return
        except BlockingIOError:
            return
        except (OSError, RespError) as exc:
            connection.lose(exc)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        unsent = [memoryview(buffer) for buffer in buffers]
        watched = False
        try:
            while unsent:
                try:
                    sent = self._socket.sendmsg(unsent[:BUFFERS_PER_CALL])
                except BlockingIOError:
                    if not watched:
                        self._loop.add_writer(self._socket, self._connection.wake)
                        watched = True
                    await self._connection.wait()
                    continue
                self._connection.progress()
                unsent = _after(unsent, sent)
        finally:
            if watched and self._connection.usable:
                self._loop.remove_writer(self._socket)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()


class _TlsLink(asyncio.BufferedProtocol):
    """A TLS transport that decrypts into the reader's buffers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.progress()
        try:
            self._connection.reader.buffer_updated(nbytes)
        except RespError as exc:
            self._connection.lose(exc)

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
            for start in range(0, len(view), TLS_CHUNK_BYTES):
                while self._paused:
                    await self._connection.wait()
                if self._transport is not None:
                    self._transport.write(view[start : start + TLS_CHUNK_BYTES])

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(address: ServerAddress, *, silence_s: float) -> Connection:
    """Connect, authenticate and select the database.

    Raises:
        OSError: the server cannot be reached within ``silence_s`` seconds, or TLS fails.
        ErrorReply: the server refuses the user or the database.
    """
    connection = Connection()
    try:
        async with asyncio.timeout(silence_s):
            await _link(connection, address)
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


async def _link(connection: Connection, address: ServerAddress) -> None:
    loop = asyncio.get_running_loop()
    if address.tls is not None:
        context = await asyncio.to_thread(address.tls.context)
        link = _TlsLink(connection)
        connection.attach(link)
        await loop.create_connection(lambda: link, address.host, address.port, ssl=context)
        return
    sock = await (_unix_socket(address.path) if address.path else _tcp_socket(address))
    connection.attach(_SocketLink(connection, sock))


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


def _after(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of the buffers once ``sent`` bytes are gone."""
    for i, buffer in enumerate(buffers):
        if sent < buffer.nbytes:
            return [buffer[sent:], *buffers[i + 1 :]]
        sent -= buffer.nbytes
    return []
