"""The same bits through memory, a server, several, a cluster, a bucket; however they are cut."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from tests.io.s3_servers import CREDENTIALS, S3Server
from tests.io.servers import ValkeyServer, cluster_of

SIZES = {"a": 5003, "b": 17, "c": 1, "d": 300_001}
WEIGHTS = [3.0, 1.0, 2.0]
STEPS = 2

_numbers = itertools.count()


def gradients(rank, step):
    rng = np.random.default_rng([rank, step])
    return {name: rng.standard_normal(size, dtype=np.float32) for name, size in SIZES.items()}


def oracle(step):
    """The weighted mean in float64."""
    every = [gradients(rank, step) for rank in range(len(WEIGHTS))]
    total = sum(WEIGHTS)
    return {
        name: sum(w * g[name].astype(np.float64) for w, g in zip(WEIGHTS, every, strict=True))
        / total
        for name in SIZES
    }


def act(aggregator, rank):
    digest = hashlib.sha256()
    for step in range(STEPS):
        grads = gradients(rank, step)
        aggregator.allreduce(grads, weight=WEIGHTS[rank])
        for name, wanted in oracle(step).items():
            np.testing.assert_allclose(grads[name], wanted, rtol=1e-5, atol=1e-6)
            digest.update(grads[name].tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("second") / "valkey.sock") as server:
        yield server


@pytest.fixture
def bucket(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with S3Server() as server:
        yield server.bucket(f"dropin-{next(_numbers)}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with cluster_of(3, tmp_path_factory.mktemp("cluster")) as nodes:
        yield f"redis://127.0.0.1:{nodes[1].port}?cluster=true"


@pytest.fixture
def urls(job, valkey, second, bucket, cluster):
    return {
        "cluster": cluster,
        "memory": f"memory://{job}",
        "socket": valkey.url,
        "tcp": f"redis://127.0.0.1:{valkey.port}/0",
        "servers": f"{valkey.url},redis://127.0.0.1:{second.port}/0",
        "bucket": bucket,
    }


def test_every_store_and_every_cut_give_one_digest(ranks, urls):
    ways = [
        # Shards of 256 KB and more are worked on in threads beside the event loop's.
        ("memory", {"shard_mb": 0.01}),
        ("memory", {"shard_mb": 4.0, "aggregators": 1}),
        ("socket", {"shard_mb": 0.05, "aggregators": 2}),
        ("socket", {"shard_mb": 0.3}),
        ("tcp", {"shard_mb": 0.1, "aggregators": 3}),
        ("servers", {"shard_mb": 0.07}),
        ("servers", {"shard_mb": 0.5, "aggregators": 1}),
        ("cluster", {"shard_mb": 0.2}),
        ("bucket", {}),
    ]
    digests = {}
    for number, (store, options) in enumerate(ways):
        ranks.job = f"digests-{store}-{number}"
        results = ranks.values(len(WEIGHTS), act, urls[store], **options)
        digests[store, number] = set(results)
    assert len(set.union(*digests.values())) == 1, digests
