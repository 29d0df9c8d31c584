"""A few connections to one server, opened as they are needed and used in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from smlt._core.replies import Reply
from smlt.io.parameter_store import MAX_FRAME_BYTES
from smlt.io.resp import Command
from smlt.io.resp_connection import Connection


class ConnectionPool:
    """At most ``size`` connections at once; who needs one more waits for one that is in use."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], size: int, *, silence_s: float
    ) -> None:
        self._connect = connect
        self._silence_s = silence_s
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        # No set, whose order would differ from run to run: simulated ones must be the same.
        self._open: dict[Connection, None] = {}

    async def exchange(
        self,
        commands: Sequence[Command],
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
    ) -> list[Reply]:
        """Exchange on one of the connections; one that is lost by it is dropped.

        Raises:
            OSError, ErrorReply, RespError: as ``connect`` and ``Connection.exchange``.
        """
        async with self._slots:
            connection = await self._take()
            try:
                return await connection.exchange(
                    commands, silence_s=self._silence_s, into=into, max_bytes=max_bytes
                )
            finally:
                if connection.usable:
                    # The last one used is the next: its buffers are warm, the rest may idle out.
                    self._idle.append(connection)
                else:
                    self._open.pop(connection, None)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._open.pop(connection, None)
        connection = await self._connect()
        self._open[connection] = None
        return connection

    def close(self) -> None:
        """Close all connections, also those in use. Idempotent."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
