"""Ranks as threads of this process, each with an Aggregator of its own, and real servers."""

from __future__ import annotations

import itertools
import threading

import pytest

from smlt.aggregation.aggregator import Aggregator
from tests.io.servers import ValkeyServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("valkey") / "valkey.sock") as server:
        yield server


@pytest.fixture
def own_valkey(tmp_path):
    """A server of the test's own, to be restarted."""
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield server


@pytest.fixture
def job():
    """A job name that no other test has, since servers are shared."""
    return f"job{next(_numbers)}"


@pytest.fixture(params=["memory", "unix", "tcp"])
def url(request, valkey, job):
    return {
        "memory": f"memory://{job}",
        "unix": valkey.url,
        "tcp": f"redis://127.0.0.1:{valkey.port}/0",
    }[request.param]


class Ranks:
    """Runs a function on every rank of a world; nothing of it is left when ``run`` returns."""

    def __init__(self, job: str) -> None:
        self.job = job

    def run(self, world_size, act, url, ranks=None, limit_s=60, **options):
        """Return by rank what ``act(aggregator, rank)`` returned, or the error it raised."""
        results = {}
        options = {"job": self.job, "world_size": world_size, "time_limit_s": 20} | options

        def live(rank):
            try:
                with Aggregator(url, rank=rank, **options) as aggregator:
                    results[rank] = act(aggregator, rank)
            except BaseException as error:  # pytest's own among them
                results[rank] = error

        chosen = range(world_size) if ranks is None else ranks
        threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(limit_s)
            assert not thread.is_alive(), "a rank hangs"
        return [results[rank] for rank in chosen]

    def values(self, *args, **options):
        """Return what ``run`` does; raise the first error there is."""
        results = self.run(*args, **options)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


@pytest.fixture
def ranks(job):
    before = set(threading.enumerate())
    yield Ranks(job)
    left = set(threading.enumerate()) - before
    # Of the S3 server, which may not have noticed yet that its client is gone.
    assert all("process_request" in thread.name for thread in left), "a thread is left"
