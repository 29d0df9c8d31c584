"""The same weights from every run, and, to rounding, from every number of workers."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from jobs.harness import CODE, SMALL
from smlt.report.events import read_events


def weights(ended):
    return load_file(ended.check(0).summary["model_path"])


def assert_close(found, wanted, atol):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


def test_two_runs_with_one_seed_give_one_digest(place):
    options = ("--workers", "2", "--steps", "20", "--json", "--quiet")
    first, second = (place.train(SMALL, *options).check(0) for _ in range(2))
    assert first.summary["weights_digest"].startswith("sha256:")
    assert first.summary["weights_digest"] == second.summary["weights_digest"]
    assert first.summary["job_id"] != second.summary["job_id"]


def test_noise_of_an_optimizer_is_the_same_on_any_number_of_ranks(place):
    options = ("--steps", "8", "--determinism", "exact", "--json", "--quiet")
    one, two = (
        place.train(SMALL.replace("Regression", "Langevin"), "--workers", workers, *options)
        for workers in ("1", "2")
    )
    assert one.check(0).summary["weights_digest"] == two.check(0).summary["weights_digest"]


def test_every_rank_tells_where_its_time_went(place):
    options = ("--workers", "2", "--steps", "5", "--shard-mb", "0.0004", "--param", "width=1000")
    ended = place.train(SMALL, *options, "--trace", "--json").check(0)
    [folder] = place.run.glob("jobs/*/")
    log = list(read_events(folder / "events.jsonl"))
    [told] = [e.fields for e in log if e.name == "shards"]
    assert told["step"] == 0
    assert (told["aggregators"], told["wire_dtype"], told["tried"]) == (2, "fp32", {})
    assert ended.summary["shards"] == told["text"]
    events = [e for e in log if e.name == "phases"]
    assert sorted((e.fields["rank"], e.fields["step"]) for e in events) == [
        (rank, step) for rank in (0, 1) for step in range(1, 6)
    ]
    for event in events:
        phases, rank = event.fields["phases"], event.fields["rank"]
        moves = ("UL-shard", "DL-shard", "UL-aggr", "DL-grad")
        assert all(0 < phases[name] <= event.fields["seconds"] for name in ("compute", *moves))
        assert phases["overlap"] <= phases["compute"]
        assert event.fields["requests"]["data"] >= 8  # shards and means, put and fetched
        shards = {name: set() for name in moves}
        for name, shard, _, began, ended_at in event.fields["spans"]:
            assert 0 <= began <= ended_at <= event.fields["seconds"] + 1e-6
            if name in shards:
                shards[name].add(shard)
        # Each shard is put by one rank and averaged by the other.
        assert shards["UL-shard"] == shards["DL-grad"]
        assert shards["DL-shard"] == shards["UL-aggr"]
        assert not shards["UL-shard"] & shards["UL-aggr"]
        every = shards["UL-shard"] | shards["UL-aggr"]
        assert len(every) > 8, rank
        assert every == set(range(told["shards"])), rank
    total = sum(event.fields["phases"]["compute"] for event in events) / 2
    assert ended.summary["phases"]["compute"] == pytest.approx(total, rel=1e-3)


def test_workers_and_aggregators_change_only_the_rounding(place):
    # 1,000 weights in shards of 400 bytes or so: many for every owner, the last one shorter.
    options = ("--steps", "20", "--shard-mb", "0.0004", "--param", "width=1000", "--json")
    options += ("--param", "lr=0.02")
    runs = [("1", "1"), ("4", "3")]  # eight workers: see the network below
    alone, *others = (
        weights(place.train(SMALL, *options, "--workers", n, "--aggregators", m)) for n, m in runs
    )
    spread = float(np.abs(alone["weight"]).max())
    assert spread > 0.5  # it has learnt: nothing is alike because nothing has moved
    for other in others:
        assert_close(other, alone, atol=1e-6)


@pytest.fixture
def mnist(place):
    """The target of the example, with its data prepared."""
    folder = place.path / "mnist"
    ignored = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(CODE / "examples/mnist", folder, ignore=ignored)
    preparing = [sys.executable, str(folder / "prepare.py")]
    subprocess.run(preparing, check=True, timeout=60, capture_output=True)
    return f"{folder / 'train.py'}:Mnist"


@pytest.mark.slow
def test_workers_and_aggregators_change_only_the_rounding_of_a_network(place, mnist):
    options = ("--steps", "20", "--shard-mb", "0.02", "--batch-size", "64", "--json")
    runs = [("1", "1"), ("2", "1"), ("4", "3"), ("8", "5")]
    alone, *others = (
        weights(place.train(mnist, *options, "--workers", n, "--aggregators", m, limit_s=300))
        for n, m in runs
    )
    for other in others:
        assert_close(other, alone, atol=5e-6)


@pytest.mark.slow
def test_killed_worker_leaves_the_digest_of_a_network(place, mnist):
    options = (mnist, "--steps", "300", "--workers", "2", "--json", "--quiet")
    calm = place.train(*options, limit_s=200).check(0)
    job = place.start(*options)
    job.until_step(5)
    job.until(lambda: len(job.pids()) == 2, "the processes of the ranks")
    job.kill_rank(1)
    disturbed = job.end(200).check(0)
    assert disturbed.summary["generations"] == 2
    assert disturbed.summary["weights_digest"] == calm.summary["weights_digest"]
