"""`Aggregator(wire_dtype=…)`: half the bytes, and nothing is lost but for a moment."""

from __future__ import annotations

import numpy as np
import pytest

from smlt.errors import ConfigError
from tests.dropin.test_aggregator import gradients, mean

SHAPES = {"weight": (7, 33), "bias": (33,), "long": (5000,)}
STEPS = 40


def averaged(aggregator, rank, steps=STEPS):
    """Sum of the means of the same gradients over many steps."""
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for _ in range(steps):
        grads = gradients(rank, SHAPES)
        aggregator.allreduce(grads)
        for name, grad in grads.items():
            total[name] += grad
    return total


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_is_rounded_away_comes_later(ranks, url, dtype):
    results = ranks.values(3, averaged, url, wire_dtype=dtype, shard_mb=0.01)
    for total in results:
        for name, expected in mean(3, SHAPES).items():
            # The error of one step, over all steps; without feedback each would be off by as much.
            np.testing.assert_allclose(total[name] / STEPS, expected, atol=0.05 / STEPS)
            np.testing.assert_array_equal(total[name], results[0][name])


def test_a_new_aggregator_goes_on_from_the_state_of_the_old_one(ranks, job):
    states = {}

    def first_half(aggregator, rank):
        totals = averaged(aggregator, rank, 5)
        states[rank] = aggregator.state_dict()
        return totals

    def second_half(aggregator, rank):
        aggregator.load_state_dict(states[rank])
        return averaged(aggregator, rank, 5)

    def both(aggregator, rank):
        averaged(aggregator, rank, 5)
        return averaged(aggregator, rank, 5)

    url = f"memory://{job}"
    ranks.values(2, first_half, url, wire_dtype="bf16")
    went_on = ranks.values(2, second_half, url, wire_dtype="bf16")
    unbroken = ranks.values(2, both, url, wire_dtype="bf16")
    assert all(np.any(owed) for state in states.values() for owed in state.values())
    for name in SHAPES:
        np.testing.assert_array_equal(went_on[0][name], unbroken[0][name])


def test_a_state_of_other_shapes_is_ignored(ranks, job):
    states = {}

    def act(aggregator, rank):
        if states:
            aggregator.load_state_dict({digest: owed[:-1] for digest, owed in states[rank].items()})
        totals = averaged(aggregator, rank, 5)
        return totals, aggregator.state_dict()

    url = f"memory://{job}"
    first = ranks.values(2, act, url, wire_dtype="bf16")
    states = [owed for _, owed in first]
    second = ranks.values(2, act, url, wire_dtype="bf16")
    for (totals, _), (again, _) in zip(first, second, strict=True):
        for name in SHAPES:
            np.testing.assert_array_equal(totals[name], again[name])


def test_reductions_of_one_layout_may_overlap(ranks, job):
    def act(aggregator, rank):
        several = [gradients(rank, SHAPES, seed=seed) for seed in range(4)]
        for future in [aggregator.allreduce_async(grads) for grads in several]:
            future.result(20)
        return several

    results = ranks.values(2, act, f"memory://{job}", wire_dtype="bf16")
    for seed in range(4):
        for name, expected in mean(2, SHAPES, seed=seed).items():
            np.testing.assert_allclose(results[0][seed][name], expected, atol=0.06)
            np.testing.assert_array_equal(results[0][seed][name], results[1][seed][name])


def test_float64_and_integers_travel_as_they_are(ranks, job):
    def act(aggregator, rank):
        grads = {"wide": np.full(10, 1 / 3 + rank), "counts": np.full(4, 1001 + 2 * rank)}
        aggregator.allreduce(grads)
        return grads

    for grads in ranks.values(2, act, f"memory://{job}", wire_dtype="bf16"):
        np.testing.assert_allclose(grads["wide"], 1 / 3 + 0.5, rtol=1e-15)
        np.testing.assert_array_equal(grads["counts"], 1002)


def test_a_dtype_that_is_none_is_refused(ranks, job):
    [error] = ranks.run(1, averaged, f"memory://{job}", wire_dtype="int8")
    assert isinstance(error, ConfigError)
    assert "write fp32, bf16, fp16 or auto" in str(error)
