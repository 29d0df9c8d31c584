"""How ranks meet, how they part, and what becomes of a job when something goes wrong."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from smlt.aggregation.aggregator import Aggregator
from smlt.aggregation.async_aggregator import AsyncAggregator
from smlt.errors import (
    AbortedError,
    ConfigError,
    RankMissingError,
    SmltError,
    StoreFullError,
    StoreLostError,
    StoreUnreachableError,
    UserError,
)
from smlt.io.memory_contents import forget
from tests.io.servers import ValkeyServer

PROCESS = """
import sys
import numpy as np
from smlt import Aggregator

url, job, rank, world_size, steps, lease_s = sys.argv[1:]
with Aggregator(
    url, job=job, rank=int(rank), world_size=int(world_size), lease_s=float(lease_s)
) as aggregator:
    for step in range(int(steps)):
        grads = np.full(1000, float(rank), np.float32)
        aggregator.allreduce(grads)
        print(step, grads[0], flush=True)
"""

# Leases of a second and limits of one do not suit a machine that does other things meanwhile.
pytestmark = pytest.mark.slow


class Process:
    """A rank in a process of its own, stopped at the test's end."""

    def __init__(self, url, job, rank, world_size, steps=10**9, lease_s=1.0):
        arguments = [url, job, rank, world_size, steps, lease_s]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROCESS, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def error(self):
        """Wait for its end and return the last line it wrote of its error."""
        _, errors = self.process.communicate(timeout=30)
        return errors.strip().rpartition("\n")[2]


def step(aggregator, rank):
    grads = np.full(100, rank, np.float32)
    aggregator.allreduce(grads)
    return grads[0]


def open_rank(url, job, rank, world_size, **options):
    return Aggregator(
        url, job=job, rank=rank, world_size=world_size, **{"time_limit_s": 20} | options
    )


def test_a_rank_that_never_comes_is_named_after_the_time_limit(ranks, url):
    began = time.monotonic()
    results = ranks.run(3, step, url, ranks=[0, 2], time_limit_s=3.0)

    assert time.monotonic() - began < 20
    for error in results:
        assert isinstance(error, RankMissingError)
        assert "rank 1 of job" in str(error)
        assert "step 0 has waited for its shard 0 for 3 s" in str(error)


def test_a_rank_that_stays_away_later_is_named_with_step_and_shard(ranks, url):
    over = threading.Event()

    def act(aggregator, rank):
        step(aggregator, rank)
        if rank == 2:
            over.wait(15)
        try:
            return step(aggregator, rank)
        finally:
            over.set()

    results = ranks.run(3, act, url, time_limit_s=1.5)

    for error in results[:2]:
        assert isinstance(error, RankMissingError)
        assert "rank 2 of job" in str(error)
        assert "in step 1" in str(error)
        assert re.search("shard [01]", str(error))
    assert isinstance(results[2], SmltError)


def test_a_rank_that_stays_away_from_an_exchange_is_named_with_the_step(ranks, url):
    over = threading.Event()

    def act(aggregator, rank):
        step(aggregator, rank)
        if rank == 2:
            over.wait(15)
        try:
            return aggregator.all_gather(np.arange(3))
        finally:
            over.set()

    results = ranks.run(3, act, url, time_limit_s=1.5)

    for error in results[:2]:
        assert isinstance(error, RankMissingError)
        assert "rank 2 of job" in str(error)
        assert "in step 1" in str(error)


def test_a_slow_rank_is_waited_for(ranks, url):
    """Within the limit it is on nobody's nerves, however often it is late."""

    def act(aggregator, rank):
        means = []
        for _ in range(3):
            time.sleep(1.5 if rank == 1 else 0)
            means.append(step(aggregator, rank))
        return means

    assert ranks.values(3, act, url, time_limit_s=10) == [[1.0] * 3] * 3


def test_a_full_server_is_named_and_nothing_is_corrupted(ranks, tmp_path):
    """What has filled it goes, so that another job lives on, and the name is free."""
    options = ("--maxmemory", "24mb", "--maxmemory-policy", "noeviction")
    with ValkeyServer(tmp_path / "small.sock", *options) as server:
        small = open_rank(server.url, "small", 0, 1)
        with small:
            step(small, 0)

            def act(aggregator, rank):
                values = [step(aggregator, rank)]
                aggregator.allreduce(np.random.default_rng(rank).random(12_000_000, np.float32))
                return values

            results = ranks.run(2, act, server.url)
            for error in results:
                assert isinstance(error, SmltError), error
                assert "\n" not in str(error)
            assert any(isinstance(error, StoreFullError) for error in results), results
            assert step(small, 0) == 0.0
            assert ranks.values(2, step, server.url) == [0.5, 0.5]


def test_a_rank_that_fails_ends_the_job_for_all_at_once(ranks, url):
    def act(aggregator, rank):
        step(aggregator, rank)
        if rank == 1:
            raise ZeroDivisionError("of the user's")
        return step(aggregator, rank)

    began = time.monotonic()
    results = ranks.run(3, act, url)

    assert time.monotonic() - began < 10
    assert isinstance(results[1], ZeroDivisionError)
    for rank in (0, 2):
        assert isinstance(results[rank], AbortedError)
        assert "rank 1 left by ZeroDivisionError: of the user's" in str(results[rank])


def test_a_rank_that_fails_as_soon_as_all_are_there_ends_the_job_for_all(ranks):
    def act(aggregator, rank):
        aggregator.allreduce(np.full(4, 1e6 * rank, np.float32))  # more than fp16 holds

    for attempt in range(8):
        results = ranks.run(2, act, f"memory://{ranks.job}{attempt}", wire_dtype="fp16")
        assert all(isinstance(r, UserError) and "fp16" in str(r) for r in results), results


def test_a_reduction_that_is_cancelled_ends_the_job_for_all(ranks, url):
    def act(aggregator, rank):
        aggregator.barrier()
        if rank:
            time.sleep(0.5)
            aggregator.allreduce(np.zeros(10, np.float32))
            return
        future = aggregator.allreduce_async(np.zeros(10, np.float32))
        time.sleep(0.2)
        future.cancel()  # and leaves as if nothing had been

    done, error = ranks.run(2, act, url)
    assert done is None
    assert isinstance(error, AbortedError)
    assert "rank 0 was interrupted at step 1" in str(error)


def test_a_rank_that_leaves_too_early_is_not_waited_for(ranks, url):
    def act(aggregator, rank):
        return [step(aggregator, rank) for _ in range(1 + rank)]

    began = time.monotonic()
    results = ranks.run(2, act, url)

    assert time.monotonic() - began < 10
    assert results[0] == [0.5]
    assert isinstance(results[1], RankMissingError)
    assert "rank 0 of job" in str(results[1])


def test_a_name_may_be_used_again_and_again(ranks, url):
    for world_size in (2, 3, 1, 2):
        values = ranks.values(world_size, step, url)
        assert values == [sum(range(world_size)) / world_size] * world_size


def test_after_an_error_the_name_is_free_at_once(ranks, url):
    began = time.monotonic()
    ranks.run(2, step, url, ranks=[0], time_limit_s=0.5)
    assert ranks.values(2, step, url) == [0.5, 0.5]
    assert time.monotonic() - began < 5


def test_another_world_size_is_refused_in_a_sentence(ranks, url):
    with (
        open_rank(url, ranks.job, 0, 3),
        pytest.raises(
            ConfigError,
            match=r"runs with world_size=3 \(rank 0, process .*, but rank 1 says world_size=2",
        ),
        open_rank(url, ranks.job, 1, 2),
    ):
        pass


def test_a_second_process_of_the_same_rank_is_refused(ranks, url):
    with (
        open_rank(url, ranks.job, 1, 2, lease_s=2.0),
        pytest.raises(ConfigError, match=f"rank 1 of job .* is taken by process {os.getpid()} on"),
        open_rank(url, ranks.job, 1, 2, lease_s=2.0),
    ):
        pass


def test_a_second_job_of_the_same_name_is_refused_and_disturbs_nobody(ranks, url):
    refused = []

    def act(aggregator, rank):
        first = step(aggregator, rank)
        try:
            with open_rank(url, ranks.job, rank, 2):
                pass
        except ConfigError as error:
            refused.append(str(error))
        return first, step(aggregator, rank)

    assert ranks.values(2, act, url) == [(0.5, 0.5)] * 2
    assert all("another name" in sentence for sentence in refused)
    assert len(refused) == 2


def test_names_shapes_and_dtypes_must_agree(ranks, url):
    def act(aggregator, rank):
        step(aggregator, rank)
        aggregator.allreduce({"w": np.zeros((3, 4 + rank), np.float32)})

    results = ranks.run(2, act, url)

    assert all(isinstance(error, UserError) for error in results)
    assert all("ranks average different arrays" in str(error) for error in results)
    assert "'w'] float32 [3, 4]" in str(results[0])
    assert "'w'] float32 [3, 5]" in str(results[0])


def test_known_layouts_in_another_order_are_told_apart(ranks, url):
    def act(aggregator, rank):
        both = [np.zeros(100, np.float32), np.zeros((10, 10), np.float32)]
        for grads in both:
            aggregator.allreduce(grads)
        aggregator.allreduce(both[rank])

    for error in ranks.run(2, act, url):
        assert isinstance(error, UserError)
        assert "ranks do different things" in str(error)


def test_different_collectives_are_told_apart(ranks, url):
    def act(aggregator, rank):
        if rank:
            aggregator.all_gather(np.zeros(3))
        else:
            aggregator.all_gather(np.zeros(4))

    for error in ranks.run(2, act, url):
        assert isinstance(error, UserError)
        assert "all have to call the same operations" in str(error)


def test_different_kinds_of_operations_are_told_before_the_time_limit(ranks, url):
    values = np.zeros(3, np.float32)

    def act(aggregator, rank):
        aggregator.barrier()
        if rank == 1:
            aggregator.broadcast(values, root=1)  # and leaves
        else:
            (aggregator.reduce_scatter if rank else aggregator.allreduce)(values)

    done, *errors = ranks.run(3, act, url, ranks=[1, 0, 2], time_limit_s=60, lease_s=1)
    assert done is None
    for error in errors:
        assert isinstance(error, UserError)
        assert "ranks do different things" in str(error)


def test_a_barrier_is_told_apart_from_an_average(ranks, url):
    def act(aggregator, rank):
        if rank:
            aggregator.barrier()
        else:
            aggregator.allreduce(np.zeros(3, np.float32))

    for error in ranks.run(2, act, url, lease_s=1):
        assert isinstance(error, UserError)
        assert "ranks do different things" in str(error)


@pytest.mark.parametrize("world_size", [2, 3])
def test_different_roots_are_told_apart(ranks, url, world_size):
    def act(aggregator, rank):
        aggregator.broadcast(np.full(3, float(rank)), root=rank % 2)
        aggregator.all_gather(np.zeros(3))

    for error in ranks.run(world_size, act, url):
        assert isinstance(error, UserError)
        assert "all have to name the same root" in str(error)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 2}, "rank 2 is outside a world of 2"),
        ({"world_size": 0}, "world_size=0 .* cannot be"),
        ({"aggregators": 3}, "aggregators=3 cannot be"),
        ({"job": "a{b}"}, "'a{b}' is no job name"),
        ({"time_limit_s": 0}, "time_limit_s=0 is no number above 0"),
        ({"lease_s": "soon"}, "lease_s='soon' is no number above 0"),
        ({"shard_mb": float("inf")}, "shard_mb=inf is no number above 0"),
        ({"rank": "0"}, "rank='0' is no whole number"),
        ({"world_size": None}, "world_size=None is no whole number"),
        ({"aggregators": 1.0}, "aggregators=1.0 is no whole number"),
        ({"job": 5}, "job=5 is no text"),
        ({"url": None}, "url=None is no text"),
        ({"url": "ftp://x"}, "is no parameter store"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(options, sentence):
    given = {"url": "memory://x", "job": "j", "rank": 0, "world_size": 2} | options
    with pytest.raises(ConfigError, match=sentence):
        Aggregator(given.pop("url"), **given)


def test_a_wrong_password_is_refused_at_once(tmp_path, job):
    with ValkeyServer(tmp_path / "v.sock", "--requirepass", "right") as server:
        url = f"redis://:wrong@127.0.0.1:{server.port}/0"
        with (
            pytest.raises(ConfigError, match="refuses user, password or database") as refusal,
            open_rank(url, job, 0, 1),
        ):
            pass
        assert "wrong@" not in str(refusal.value)


def test_a_server_that_is_not_there_is_named(tmp_path, job):
    with (
        pytest.raises(StoreUnreachableError, match="cannot be reached within 1 s"),
        open_rank(f"unix://{tmp_path}/none.sock", job, 0, 1, time_limit_s=1),
    ):
        pass


def test_a_killed_rank_is_missed_by_its_lease_and_can_come_again(ranks, valkey):
    dead = threading.Event()

    def act(aggregator, rank):
        step_1 = step_of_process(aggregator)
        other.kill()
        dead.set()
        with pytest.raises(RankMissingError, match="rank 1 of job") as error:
            some_steps_of_process(aggregator)
        return step_1, str(error.value)

    with Process(valkey.url, ranks.job, 1, 2) as other:
        began = time.monotonic()
        [(mean, sentence)] = ranks.values(2, act, valkey.url, ranks=[0], lease_s=1.0)
    assert mean == 0.5
    assert re.search(
        r"step \d+ waits for (shard \d of rank 1|the mean of shard \d by rank 1)", sentence
    )
    assert time.monotonic() - began < 20
    assert ranks.values(2, step, valkey.url, lease_s=1.0) == [0.5, 0.5]


def some_steps_of_process(aggregator):
    """More than one: a rank may have sent its part of the next one before it died."""
    for _ in range(3):
        step_of_process(aggregator)


def step_of_process(aggregator):
    grads = np.zeros(1000, np.float32)
    aggregator.allreduce(grads)
    return grads[0]


def test_when_all_ranks_were_killed_the_next_run_waits_for_their_leases_only(ranks, valkey):
    with (
        Process(valkey.url, ranks.job, 0, 2) as first,
        Process(valkey.url, ranks.job, 1, 2) as second,
    ):
        assert first.process.stdout.readline() == "0 0.5\n"
        first.kill()
        second.kill()
    assert ranks.values(3, step, valkey.url, lease_s=1.0) == [1.0] * 3


def test_a_rank_that_wakes_after_its_job_was_taken_over_changes_nothing(ranks, valkey):
    with (
        Process(valkey.url, ranks.job, 0, 2) as first,
        Process(valkey.url, ranks.job, 1, 2) as zombie,
    ):
        assert first.process.stdout.readline() == "0 0.5\n"
        zombie.process.send_signal(signal.SIGSTOP)
        first.kill()

        def act(aggregator, rank):
            values = [step(aggregator, rank)]
            if rank == 0:
                zombie.process.send_signal(signal.SIGCONT)
                reason = zombie.error()
            else:
                reason = ""
            aggregator.barrier()
            return values + [step(aggregator, rank) for _ in range(20)], reason

        results = ranks.values(2, act, valkey.url, lease_s=1.0)
    assert [values for values, _ in results] == [[0.5] * 21] * 2
    assert "AbortedError" in results[0][1]
    assert "a new run began" in results[0][1]


def test_a_server_that_is_restarted_empty_is_told_and_the_job_can_begin_again(ranks, own_valkey):
    restarted = threading.Barrier(2)

    def act(aggregator, rank):
        step(aggregator, rank)
        if restarted.wait(10) == 0:
            own_valkey.kill()
            own_valkey.start()
        return [step(aggregator, rank) for _ in range(1000)]

    results = ranks.run(2, act, own_valkey.url, lease_s=2.0)

    for error in results:
        assert isinstance(error, StoreLostError), error
        assert "restarted or emptied" in str(error)
    assert ranks.values(2, step, own_valkey.url) == [0.5, 0.5]


def test_a_store_that_was_emptied_in_memory_is_told(ranks):
    barrier = threading.Barrier(2)

    def act(aggregator, rank):
        step(aggregator, rank)
        if barrier.wait(10) == 0:
            forget(ranks.job)
        barrier.wait(10)
        return step(aggregator, rank)

    for error in ranks.run(2, act, f"memory://{ranks.job}"):
        assert isinstance(error, StoreLostError)


def test_it_is_used_within_with(job):
    aggregator = open_rank(f"memory://{job}", job, 0, 1)
    with pytest.raises(AbortedError, match="use it inside its `with` statement"):
        aggregator.allreduce(np.zeros(1, np.float32))
    with aggregator:
        aggregator.allreduce(np.zeros(1, np.float32))
    with pytest.raises(AbortedError):
        aggregator.barrier()


def test_failures_at_the_same_time_have_one_reason(valkey, job):
    failures = [AbortedError("a new run began"), StoreLostError("it has no marker")]

    async def fail():
        aggregator = AsyncAggregator(valkey.url, job=job, rank=0, world_size=1)
        async with aggregator:
            session = aggregator._session
            return await asyncio.gather(*(session.fail(error) for error in failures))

    first, second = asyncio.run(fail())
    assert first is second
    assert "a new run began" in str(first)


def test_it_is_entered_once(job):
    with open_rank(f"memory://{job}", job, 0, 1) as aggregator:
        with pytest.raises(UserError, match="make another one"), aggregator:
            pass
        aggregator.barrier()
    with pytest.raises(UserError, match="make another one"), aggregator:
        pass


FORKED = """
import os, sys
import numpy as np
from smlt import Aggregator

with Aggregator("memory://forked", job="forked", rank=0, world_size=1) as aggregator:
    aggregator.barrier()
    child = os.fork()
    if not child:
        try:
            aggregator.allreduce(np.zeros(3, np.float32))
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    aggregator.allreduce(np.zeros(3, np.float32))
print("parent goes on")
"""


def test_a_forked_child_is_told_that_it_has_no_part_in_it():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    child, parent = ended.stdout.strip().split("\n")
    assert child.startswith("AbortedError smlt-aggregator-0 belongs to process ")
    assert "from which this one was forked" in child
    assert parent == "parent goes on"
    assert ended.returncode == 0, ended.stderr


def test_the_asyncio_twin_does_the_same(job):
    async def live(rank):
        options = {"job": job, "rank": rank, "world_size": 3}
        async with AsyncAggregator(f"memory://{job}", **options) as aggregator:
            grads = [np.full(10, rank, np.float32), np.full(10, rank, np.float64)]
            other = np.full(10, 2.0 * rank)
            await asyncio.gather(aggregator.allreduce(grads), aggregator.allreduce(other))
            await aggregator.barrier()
            return grads[0][0], grads[1][0], other[0]

    async def all_ranks():
        return await asyncio.gather(*(live(rank) for rank in range(3)))

    assert asyncio.run(all_ranks()) == [(1.0, 1.0, 2.0)] * 3
