"""Large frames on blocking sockets, each moved by a thread.

Two system calls move a frame of megabytes. An event loop wakes up for every 100 KB of it instead,
and the interpreter's time for that was a third of a step's (docs/decisions/0062).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence

from smlt._core.replies import Reply
from smlt._core.reply_reader import ReplyReader
from smlt.io.parameter_store import Buffer
from smlt.io.resp import Command, check, encode
from smlt.io.server_address import ServerAddress
from smlt.io.server_socket import BUFFERS_PER_CALL, greeting, open_socket, unsent
from smlt.io.threads import Threads

LARGE_BYTES = 256 << 10
"""From this size on a frame moves in a thread."""


class FrameThreads:
    """At most ``size`` connections to one server, each used by one thread at a time.

    Neither TLS nor a limited rate: those need the event loop (``resp_links``).
    """

    def __init__(self, address: ServerAddress, *, size: int, silence_s: float) -> None:
        self._address = address
        self._silence_s = silence_s
        self._slots = asyncio.Semaphore(size)
        self._threads = Threads(size, "smlt-frames")
        self._idle: list[_BlockingConnection] = []
        self._open: set[_BlockingConnection] = set()

    async def exchange(
        self, commands: Sequence[Command], *, into: memoryview | None, max_bytes: int
    ) -> list[Reply]:
        """Send the commands and return their replies (``Connection.exchange``).

        When it returns, or raises, no thread touches any of the buffers any more.
        """
        async with self._slots:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                replies = await self._in_thread(connection, commands, into, max_bytes)
            except BaseException:
                # What broke one has broken the others: they lead to the same server.
                for other in (connection, *self._idle):
                    self._drop(other)
                self._idle.clear()
                raise
            self._idle.append(connection)
            return replies

    def close(self) -> None:
        """Close all connections; who still waits for one sees it break. Idempotent."""
        for connection in self._open:
            connection.cut()
        for connection in self._idle:
            self._drop(connection)
        self._idle.clear()
        self._threads.close()

    async def _connect(self) -> _BlockingConnection:
        async with asyncio.timeout(self._silence_s):
            sock = await open_socket(self._address)
        connection = _BlockingConnection(sock, self._silence_s)
        self._open.add(connection)
        try:
            check(await self._in_thread(connection, greeting(self._address), None, 0))
        except BaseException:
            self._drop(connection)
            raise
        return connection

    async def _in_thread(
        self,
        connection: _BlockingConnection,
        commands: Sequence[Command],
        into: memoryview | None,
        max_bytes: int,
    ) -> list[Reply]:
        return await self._threads.run(
            connection.exchange, commands, into, max_bytes, cut=connection.cut
        )

    def _drop(self, connection: _BlockingConnection) -> None:
        connection.close()
        self._open.discard(connection)


class _BlockingConnection:
    """One exchange at a time, on the thread that calls. After an error it is of no more use."""

    def __init__(self, sock: socket.socket, silence_s: float) -> None:
        sock.setblocking(True)
        limit = struct.pack("@ll", int(silence_s), max(1, int(silence_s % 1 * 1e6)))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        self._socket = sock
        self._silence_s = silence_s
        self._reader = ReplyReader()

    def exchange(
        self, commands: Sequence[Command], into: memoryview | None, max_bytes: int
    ) -> list[Reply]:
        """Send the commands and return their replies; errors as ``Connection.exchange``.

        The time limit is on silence: of one call, and at the most of two.
        """
        self._reader.expect(len(commands), into=into, max_bytes=max_bytes)
        try:
            self._send(encode(commands))
            while self._reader.missing:
                self._receive()
        except BlockingIOError as exc:
            raise TimeoutError(f"silent for {self._silence_s:g} s") from exc
        return self._reader.replies

    def _send(self, buffers: Sequence[Buffer]) -> None:
        left = [memoryview(buffer) for buffer in buffers]
        while left:
            left = unsent(left, self._socket.sendmsg(left[:BUFFERS_PER_CALL]))

    def _receive(self) -> None:
        # What is left of a value is waited for as a whole, in the kernel.
        whole = socket.MSG_WAITALL if self._reader.fills_value else 0
        received = self._socket.recv_into(self._reader.get_buffer(), 0, whole)
        if not received:
            raise ConnectionResetError("the server closed the connection")
        self._reader.buffer_updated(received)

    def cut(self) -> None:
        """End what another thread is doing on this connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
