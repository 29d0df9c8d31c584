"""A link of a given rate: never faster than it says, on whatever carries the bytes."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parameter_store_contract import mark, put
from servers import ValkeyServer, cluster_of

from smlt.errors import ConfigError
from smlt.io.link_rate import TokenBucket, paced, take_rate
from smlt.io.stores import open_parameter_store

BURST_S = 0.01


@given(
    rate=st.floats(1e3, 1e9),
    moves=st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(0, 0.1)), max_size=50),
)
def test_bucket_passes_no_more_than_its_rate_and_wastes_nothing(rate, moves):
    now = 0.0
    bucket = TokenBucket(rate, lambda: now)
    passed = 0
    for nbytes, idle_s in moves:
        now += bucket.delay_s()
        bucket.spend(nbytes)
        passed += nbytes
        assert passed <= rate * (now + bucket.delay_s() + BURST_S) * (1 + 1e-9)
        now += idle_s
    # Late by less than the burst, it catches up.
    now += bucket.delay_s()
    assert now <= passed / rate + sum(idle_s for _, idle_s in moves) + 1e-9


@pytest.fixture
def server(tmp_path):
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield server


@pytest.fixture
def cluster(tmp_path):
    with cluster_of(3, tmp_path) as nodes:
        yield f"redis://127.0.0.1:{nodes[2].port}?cluster=true"


@pytest.fixture
def bucket(moto, credentials):
    return moto.bucket("slow-link")


@pytest.fixture
def url(request, server):
    tcp = f"redis://127.0.0.1:{server.port}/0"
    urls = {"unix": server.url, "tcp": tcp, "several": f"{tcp},{server.url}"}
    return urls.get(request.param) or request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    "url",
    ["unix", "tcp", "several"]
    + [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cluster", "bucket")],
    indirect=True,
)
def test_store_is_as_slow_as_its_link(url):
    mbps, nbytes = 8.0, 400_000
    frames = [np.random.default_rng(i).bytes(nbytes) for i in range(4)]

    async def run():
        async with open_parameter_store(paced(url, mbps), time_limit_s=10) as store:
            await mark(store, "{k}")
            begun = time.monotonic()
            await asyncio.gather(*(put(store, "{k}", str(i), [f]) for i, f in enumerate(frames)))
            put_s, begun = time.monotonic() - begun, time.monotonic()
            room = [np.empty(nbytes, np.uint8) for _ in frames]
            got = await asyncio.gather(
                *(store.get(f"{{k}}{i}", into=r.data) for i, r in enumerate(room))
            )
            return put_s, time.monotonic() - begun, [bytes(g) for g in got]

    put_s, get_s, got = asyncio.run(run())
    assert got == frames
    least_s = len(frames) * nbytes / (mbps * 1e6) - BURST_S
    assert put_s >= least_s
    assert get_s >= least_s


def test_rate_is_an_option_of_every_url():
    for url in ("redis://h:1/0", "redis://h:1/0?ssl=no", "unix:///a.sock,unix:///b.sock?db=1"):
        assert take_rate(paced(url, 20))[0] == url
        assert take_rate(paced(url, 20))[1] is not None
    assert paced("redis://h", None) == "redis://h"
    assert take_rate("redis://h?link_mbps=2&db=1")[0] == "redis://h?db=1"


@pytest.mark.parametrize("rate", ["0", "-1", "fast", "inf", "nan", ""])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="megabytes a second"):
        open_parameter_store(f"redis://h?link_mbps={rate}", time_limit_s=1)


def test_memory_has_no_link():
    with pytest.raises(ConfigError, match="no link that could be slow"):
        open_parameter_store("memory://x?link_mbps=2", time_limit_s=1)
