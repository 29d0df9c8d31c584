"""Whole jobs through several parameter servers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from jobs.harness import SMALL
from tests.io.servers import ValkeyServer, cluster_of

OPTIONS = ("--workers", "2", "--steps", "20", "--json", "--quiet")
# 1,000 weights in shards of 400 bytes or so, for every server to have some.
MANY_SHARDS = ("--shard-mb", "0.0004", "--param", "width=1000", "--param", "lr=0.02")


@pytest.fixture
def servers(tmp_path):
    with ExitStack() as stack:
        yield [stack.enter_context(ValkeyServer(tmp_path / f"{i}.sock")) for i in range(2)]


def url_of(servers):
    return ",".join(f"redis://127.0.0.1:{server.port}" for server in servers)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_costs_a_generation_and_no_bit(place, servers):
    calm = place.train(SMALL, *OPTIONS, *MANY_SHARDS).check(0)
    gate = place.gate(8)
    options = (*OPTIONS, *MANY_SHARDS, *gate.params, "--parameters", url_of(servers))
    job = place.start(SMALL, *options)
    gate.until_there(job, 2)
    for server in servers:
        with server.client() as admin:
            assert any(key.endswith((b":mean", b":means")) for key in admin.keys("*"))
    servers[1].kill()
    servers[1].start()
    gate.open()
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == calm.summary["weights_digest"]
    assert ended.summary["generations"] == 2
    for server in servers:
        with server.client() as admin:
            assert admin.keys("*") == []


def test_a_server_that_is_not_there_is_named_before_anything_begins(place, servers):
    servers[1].kill()
    ended = place.train(SMALL, *OPTIONS, "--parameters", url_of(servers)).check(1)
    assert f"127.0.0.1:{servers[1].port}" in ended.sentence
    assert not (place.run / "jobs").exists()


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits(place, tmp_path):
    calm = place.train(SMALL, *OPTIONS, *MANY_SHARDS).check(0)
    with cluster_of(3, tmp_path) as nodes:
        url = f"redis://127.0.0.1:{nodes[0].port}?cluster=true"
        ended = place.train(SMALL, *OPTIONS, *MANY_SHARDS, "--parameters", url).check(0)
        for node in nodes:
            with node.client() as admin:
                assert admin.keys("*") == []
    assert ended.summary["weights_digest"] == calm.summary["weights_digest"]
