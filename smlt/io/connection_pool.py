"""A few connections to one server, opened as they are needed and used in turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from smlt.io.resp_connection import Connection


class ConnectionPool:
    """At most ``size`` connections at once; who needs one more waits for one that is in use."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; one that was lost meanwhile is dropped.

        Raises:
            OSError, ErrorReply: as ``connect``.
        """
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            finally:
                if connection.usable:
                    # The last one used is the next: its buffers are warm, the rest may idle out.
                    self._idle.append(connection)
                else:
                    self._open.discard(connection)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._open.discard(connection)
        connection = await self._connect()
        self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close all connections, also those in use. Idempotent."""
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._idle.clear()
