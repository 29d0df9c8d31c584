"""How the first averages find out how shards do best, and who is told."""

from __future__ import annotations

import logging

import numpy as np
import pytest

STEPS = 16
"""More than there are trials."""


def averaged(elements, steps=STEPS):
    """An act that averages one array again and again; returns what it says of shards, and sums."""

    def act(aggregator, rank):
        total, told = np.zeros(elements), []
        own = np.random.default_rng(rank).standard_normal(elements, np.float32)
        for _ in range(steps):
            grads = own.copy()
            aggregator.allreduce({"w": grads})
            total += grads
            told.append(dict(aggregator.shards))
        return told, total

    return act


def mean(elements, world_size):
    every = [
        np.random.default_rng(r).standard_normal(elements, np.float32) for r in range(world_size)
    ]
    return np.mean(np.stack(every).astype(np.float64), axis=0)


def test_what_was_found_is_told_to_user_and_log(ranks, job, caplog):
    caplog.set_level(logging.INFO, "smlt")
    results = ranks.values(2, averaged(600_000), f"memory://{job}")

    for told, total in results:
        assert told == results[0][0], "ranks differ"
        assert not told[3], "it is settled before anything was tried"
        [(layout, text)] = told[-1].items()
        assert layout == "grads['w'] float32 [600000]"
        assert "a step in" in text
        np.testing.assert_allclose(total / STEPS, mean(600_000, 2), rtol=1e-4, atol=1e-6)
    said = [record.getMessage() for record in caplog.records if "a step in" in record.getMessage()]
    assert said == [f"job {ranks.job}: {layout}: {text}"] * 2


def test_what_was_asked_for_is_kept(ranks, job):
    for told, _ in ranks.values(2, averaged(600_000, 3), f"memory://{job}", shard_mb=0.5):
        [text] = told[0].values()
        assert text.startswith("6 shards of 0.381 MB in fp32, 2 owners")
        assert told == [told[0]] * 3


@pytest.mark.slow
def test_values_are_rounded_where_that_was_left_open_and_pays(ranks, valkey):
    url = f"{valkey.url}?link_mbps=4"
    results = ranks.values(2, averaged(250_000), url, wire_dtype="auto")
    for told, total in results:
        [text] = told[-1].values()
        assert " in bf16, " in text
        np.testing.assert_array_equal(total, results[0][1])
        # What rounding takes away comes later: not each step's, but one step's is missing.
        np.testing.assert_allclose(total / STEPS, mean(250_000, 2), atol=0.05 / STEPS * 4)
