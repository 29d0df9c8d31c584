"""Plain sockets to a Redis or Valkey server: connecting, and what is left of what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from smlt.io.resp import Command
from smlt.io.server_address import ServerAddress

BUFFERS_PER_CALL = 512
"""Below IOV_MAX, which is 1024 on Linux and macOS."""
_UNIX_SEND_BYTES = 1 << 20


async def open_socket(address: ServerAddress) -> socket.socket:
    """Return a connected, non-blocking socket.

    Raises:
        OSError: the server cannot be reached.
    """
    return await (_unix_socket(address.path) if address.path else _tcp_socket(address))


def greeting(address: ServerAddress) -> list[Command]:
    """Return what to say first: user, database, and whether the server is ready."""
    commands: list[Command] = []
    if address.password:
        user = (address.username.encode(),) if address.username else ()
        commands.append((b"AUTH", *user, address.password.encode()))
    if address.db:
        commands.append((b"SELECT", b"%d" % address.db))
    # A server that is still loading its data, or wants a password, says so now.
    return [*commands, (b"PING",)]


async def _unix_socket(path: str) -> socket.socket:
    sock = await _connected(socket.AF_UNIX, path)
    # TCP tunes its buffers by itself; a unix socket's default wakes the sender every 200 KB.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BYTES)
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


def unsent(buffers: list[memoryview], sent: int) -> list[memoryview]:
    """Return what is left of the buffers once ``sent`` bytes are gone."""
    for i, buffer in enumerate(buffers):
        if sent < buffer.nbytes:
            return [buffer[sent:], *buffers[i + 1 :]]
        sent -= buffer.nbytes
    return []
