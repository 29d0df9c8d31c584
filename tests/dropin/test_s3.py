"""A bucket as the parameter store of a drop-in job: what it costs, and what it survives."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from smlt.errors import RankMissingError
from tests.io.s3_servers import CREDENTIALS, CutError, Fault, S3Server

STEPS = 4

_numbers = itertools.count()


@pytest.fixture(scope="module")
def moto():
    with S3Server() as server:
        yield server


@pytest.fixture
def bucket(moto, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield moto.bucket(f"dropin-s3-{next(_numbers)}").replace("?", "/prefix?")
    moto.heal()


def steps(aggregator, rank, compute_s=0.0):
    """Return the means of some steps, and what they cost a rank: requests, and seconds."""
    aggregator.barrier()
    before, begun, means = Counter(aggregator.requests), time.monotonic(), []
    for step in range(STEPS):
        time.sleep(compute_s)
        grads = np.full(1000, rank + step, np.float32)
        aggregator.allreduce(grads)
        means.append(grads[0])
    return means, Counter(aggregator.requests) - before, time.monotonic() - begun


def test_a_step_costs_few_requests(ranks, bucket):
    results = ranks.values(4, lambda *args: steps(*args, compute_s=0.2), bucket)

    for means, requests, seconds in results:
        assert means == [1.5 + step for step in range(STEPS)]
        # Looks grow rarer while nothing comes; on streams that nobody waits for there are none.
        assert requests["ListObjectsV2"] <= 10 * STEPS + 2 * seconds
        # One shard each, and one mean of them: a quarter of the ranks owns shards, one of four.
        # Leases, and looks at those of the others, take three seconds and fifteen.
        assert requests["PutObject"] <= 2 * STEPS + seconds + 4
        assert requests["GetObject"] <= 3 * STEPS + 2 * seconds + 10


@pytest.mark.slow
def test_a_rank_that_computes_costs_next_to_nothing(ranks, bucket):
    def act(aggregator, rank):
        aggregator.barrier()
        before = Counter(aggregator.requests)
        begun = time.monotonic()
        time.sleep(4)
        requests = Counter(aggregator.requests) - before
        return requests.total() / (time.monotonic() - begun)

    # The control stream, less and less often; the lease and a look at the marker every 3 seconds.
    assert max(ranks.values(2, act, bucket)) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_faults_of_s3_change_no_mean(ranks, moto, bucket, seed):
    rng, lock = random.Random(seed), threading.Lock()

    def trip(method, path):
        with lock:
            dice = rng.random()
        if dice < 0.05:
            raise Fault(503, "SlowDown")
        if dice < 0.08:
            raise Fault(500, "InternalError")
        if dice < 0.1:
            raise CutError

    def act(aggregator, rank):
        aggregator.barrier()
        moto.before = trip
        moto.after = trip
        return steps(aggregator, rank)

    for means, *_ in ranks.values(3, act, bucket):
        assert means == [1.0 + step for step in range(STEPS)]


@pytest.mark.slow
def test_an_express_bucket_is_the_same_code(ranks, moto, bucket):
    """Of S3 Express: sessions instead of signatures, whole directories, in no order."""
    url = moto.bucket("dropin--use1-az4--x-s3")
    for means, *_ in ranks.values(3, steps, url):
        assert means == [1.0 + step for step in range(STEPS)]


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named(ranks, bucket):
    for error in ranks.run(3, steps, bucket, ranks=[0, 2], time_limit_s=3.0):
        assert isinstance(error, RankMissingError)
        assert "rank 1 of job" in str(error)
