"""The migrations of docs/drop-in.md, run from the page: before and after give the same weights."""

from __future__ import annotations

import io
import multiprocessing
import re
import threading
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "drop-in.md"
WORKERS = 3


def shard(rank, workers):
    """The part of a small linear problem that a worker has."""
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((workers * 20, 8))
    targets = inputs @ np.arange(8.0) + 0.1 * rng.standard_normal(workers * 20)
    return inputs[rank::workers], targets[rank::workers]


def version(name, mark):
    """Return the function ``train`` of a diff on the page, before ("-") or after ("+")."""
    text = re.search(rf"```diff {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = [line[1:] for line in text.splitlines() if not line or line[0] in (" ", mark)]
    namespace = {"shard": shard}
    exec(compile("\n".join(lines), f"{PAGE.name}:{name}", "exec"), namespace)
    return namespace["train"]


class NoSuchKey(Exception):
    pass


class Bucket:
    """As much of an S3 client as hand-written averaging uses."""

    class exceptions:
        NoSuchKey = NoSuchKey

    def __init__(self):
        self.objects = {}

    def put_object(self, *, Bucket, Key, Body):
        self.objects[Bucket, Key] = Body

    def get_object(self, *, Bucket, Key):
        if (Bucket, Key) not in self.objects:
            raise NoSuchKey(Key)
        return {"Body": io.BytesIO(self.objects[Bucket, Key])}


def on_threads(train, event, *arguments):
    """Run a version on every rank, and return the weights of each."""
    results = [None] * event["workers"]

    def work(rank):
        results[rank] = train(event | {"worker_id": rank}, *arguments)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(event["workers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_numpy_on_many_ranks_learns_what_one_machine_did(valkey, job):
    [expected] = on_threads(version("numpy", "-"), {"workers": 1})

    event = {"workers": 1, "store": valkey.url, "job": job}
    np.testing.assert_allclose(on_threads(version("numpy", "+"), event)[0], expected)
    weights = on_threads(version("numpy", "+"), event | {"workers": WORKERS})
    for rank in range(WORKERS):
        np.testing.assert_array_equal(weights[rank], weights[0])


def test_averaging_by_hand_is_replaced(valkey, job):
    event = {"workers": WORKERS, "bucket": "b", "store": valkey.url, "job": job}
    before = on_threads(version("by-hand", "-"), event, Bucket())
    after = on_threads(version("by-hand", "+"), event, None)

    for rank in range(WORKERS):
        np.testing.assert_allclose(after[rank], before[rank], rtol=1e-4)


def _train(mark, event, rank, results):
    results.put((rank, version("ddp", mark)(event | {"worker_id": rank})))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ddp_gives_the_same_weights(tmp_path, valkey, job):
    context = multiprocessing.get_context("spawn")
    weights = {}
    for mark, init in (("-", f"file://{tmp_path}/init"), ("+", f"smlt+{valkey.url}?job={job}")):
        results = context.SimpleQueue()
        event = {"workers": 2, "init": init}
        processes = [
            context.Process(target=_train, args=(mark, event, rank, results)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(90)
            process.kill()
        assert [process.exitcode for process in processes] == [0, 0]
        weights[mark] = dict(results.get() for _ in processes)
    for rank in range(2):
        np.testing.assert_allclose(weights["+"][rank], weights["-"][rank], rtol=1e-4)
