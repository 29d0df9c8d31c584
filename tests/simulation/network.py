"""Connections between processes and servers: latency, broken connections, partitions.

What was sent before a connection broke may still arrive, as it may from the buffers of a kernel:
late writes of the dead are part of what is simulated. In each direction order is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass

from smlt._core.replies import RespError
from smlt.io.resp_connection import Connection
from tests.simulation.loop import PROCESS

_STEP_BYTES = 16 << 10


@dataclass(frozen=True)
class Latency:
    """Seconds one way."""

    low: float = 0.0002
    high: float = 0.002
    tail_share: float = 0.0
    tail: float = 0.5

    def draw(self, rng: random.Random) -> float:
        if self.tail_share and rng.random() < self.tail_share:
            return rng.uniform(self.high, self.tail)
        return rng.uniform(self.low, self.high)


class Network:
    """All connections; each draws its latencies from a generator of its own."""

    def __init__(self, loop, seed: int, latency: Latency, trace) -> None:
        self.loop = loop
        self.latency = latency
        self.trace = trace
        self.channels = {}
        self._seed = seed
        self._numbers = itertools.count()
        self._healed = {}

    def open(self, server, on_data, on_lost) -> Channel:
        """Connect the running process.

        Raises:
            ConnectionRefusedError: the server is down.
            asyncio.CancelledError: the process is dead, and reaches nobody.
        """
        process = PROCESS.get()
        if process.dead:
            raise asyncio.CancelledError
        if not server.up:
            raise ConnectionRefusedError("the server is down")
        if server.distrust is not None:
            raise server.distrust
        number = next(self._numbers)
        rng = random.Random(f"{self._seed}/{number}")
        channel = Channel(self, process, server, rng, on_data, on_lost)
        self.channels[channel] = None
        return channel

    def healed(self, process) -> float:
        """When the process is, or was, reachable again."""
        return self._healed.get(process, 0.0)

    def delay(self, process, rng) -> float:
        """Seconds until what is sent now would arrive."""
        wait = max(0.0, self.healed(process) - self.loop.now)
        return wait + self.latency.draw(rng)

    def partition(self, process, seconds: float) -> None:
        """Hold back all that the process sends and is sent."""
        self._healed[process] = self.loop.now + seconds

    def cut(self, process) -> None:
        """Break every connection of a process."""
        for channel in [c for c in self.channels if c.process is process]:
            channel.cut()

    def cut_off(self, server) -> None:
        """Break every connection to a server."""
        for channel in [c for c in self.channels if c.server is server]:
            channel.cut()


class Channel:
    """One connection, seen from both ends."""

    def __init__(self, network, process, server, rng, on_data, on_lost) -> None:
        self.process = process
        self.server = server
        self.closed = False
        self._network = network
        self._rng = rng
        self._on_data = on_data
        self._on_lost = on_lost
        self._arrivals = {True: 0.0, False: 0.0}
        self._session = server.accept(self)
        process.on_death.append(self.close)

    def send(self, data: bytes) -> None:
        """Send to the server."""
        if not self.closed and not self.process.dead:
            self._at(True, self._arrive, bytes(data))

    def reply(self, data: bytes) -> None:
        """Send to the process."""
        if not self.closed:
            self._at(False, self._arrive_back, data)

    def close(self) -> None:
        """Close from the process's side; what is under way to the server still arrives."""
        if not self.closed:
            self.closed = True
            self._network.channels.pop(self, None)
            self._at(True, self._session.close)

    def cut(self) -> None:
        """Break it; both sides learn of it at once, and what is under way may be lost."""
        if self.closed:
            return
        self.closed = True
        self._network.channels.pop(self, None)
        if self._rng.random() < 0.5:
            self._session.close()
        else:
            self._at(True, self._session.close)
        self.process.call_later(0, self._on_lost, ConnectionResetError("connection reset"))

    def _at(self, up: bool, callback, *args) -> None:
        loop = self._network.loop
        when = loop.now + self._network.delay(self.process, self._rng)
        when = self._arrivals[up] = max(when, self._arrivals[up] + 1e-7)
        owner = self.server.process if up else self.process
        loop.call_at(when, callback, *args, context=owner.context)

    def _arrive(self, data: bytes) -> None:
        self._session.feed(data)

    def _arrive_back(self, data: bytes) -> None:
        if not self.closed:
            self._on_data(data)


class _Link:
    """Carries a ``Connection`` of ours."""

    def __init__(self, network: Network, server, connection: Connection) -> None:
        self._connection = connection
        self._channel = network.open(server, self._received, connection.lose)

    async def send(self, buffers) -> None:
        self._connection.progress()
        self._channel.send(b"".join(buffers))
        await asyncio.sleep(0)

    def close(self) -> None:
        self._channel.close()

    def _received(self, data: bytes) -> None:
        connection, view = self._connection, memoryview(data)
        try:
            while view:
                room = connection.reader.get_buffer()
                size = min(len(room), len(view), _STEP_BYTES)
                room[:size] = view[:size]
                connection.received(size)
                view = view[size:]
        except RespError as exc:
            connection.lose(exc)


async def dial(network: Network, server, *, silence_s: float) -> Connection:
    """Connect to a simulated server, as ``resp_links.connect`` does to a real one."""
    connection = Connection()
    await asyncio.sleep(network.delay(PROCESS.get(), random.Random(0)))
    connection.attach(_Link(network, server, connection))
    return connection


class Transport(asyncio.Transport):
    """What redis-py's streams write to."""

    def __init__(self, network: Network, server, protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._channel = network.open(server, protocol.data_received, self._lost)
        protocol.connection_made(self)

    def write(self, data) -> None:
        self._channel.send(data)

    def writelines(self, pieces) -> None:
        self._channel.send(b"".join(pieces))

    def close(self) -> None:
        if not self._channel.closed:
            self._channel.close()
            self._channel.process.call_later(0, self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._channel.closed

    def set_protocol(self, protocol) -> None:
        self._protocol = protocol

    def get_protocol(self):
        return self._protocol

    def _lost(self, error) -> None:
        self._protocol.connection_lost(error)

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def connect_stream(network: Network, server, factory):
    await asyncio.sleep(network.delay(PROCESS.get(), random.Random(0)))
    protocol = factory()
    return Transport(network, server, protocol), protocol
