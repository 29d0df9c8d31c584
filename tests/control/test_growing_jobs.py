"""Jobs whose batch doubles and whose model grows: same bits under faults, and those of a loop."""

import asyncio
import random

import numpy as np
import pytest

from smlt.io.keys import JobObjects
from smlt.io.weights import read_weights
from smlt.worker.sample_order import SampleOrder
from tests.control.town import Town

BATCHES = (16, 16, 32, 32, 64, 64)
GROWTH = {
    1: (24, 1),
    3: (40, 2),
}  # epoch: size of the weights, seed of what is new

TASK = f"""
import numpy as np
import smlt

class Growing(smlt.Task):
    grow_at = {tuple(GROWTH)}

    def dataset(self, data, split):
        return list(np.linspace(-1, 1, 96, dtype=np.float32))

    def batch_size(self, epoch):
        return {BATCHES}[epoch]

    def initialize(self, seed, total_steps):
        assert total_steps == 6 + 6 + 3 + 3 + 2 + 2
        self.w = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        self.m = np.zeros(16, np.float32)

    def grow(self, epoch):
        size, seed = {GROWTH}[epoch]
        new = np.random.default_rng(seed).normal(size=size - len(self.w)).astype(np.float32)
        self.w = np.concatenate([self.w, new])
        self.m = np.concatenate([self.m, np.zeros_like(new)])

    def state(self):
        return {{"w": self.w, "m": self.m}}

    def weights(self):
        return {{"w": self.w}}

    def gradients(self, samples, into, ready):
        for x in samples:
            into["w"] += np.sin(self.w * x)
        return smlt.Contribution(float(sum(np.cos(self.w * x).sum() for x in samples)))

    def apply(self, mean, present):
        self.m *= 0.9
        self.m += mean["w"]
        self.w -= 0.05 * self.m
"""


class GrowingTown(Town):
    def __init__(self, folder, **settings):
        super().__init__(folder, target="growing.py:Growing", **settings)
        (folder / "growing.py").write_text(TASK)

    async def weights(self):
        return (await read_weights(self.objects, JobObjects("drift").model))["w"].numpy()


def in_one_process():
    """The job as a loop over whole batches, in float64."""
    x = np.linspace(-1, 1, 96, dtype=np.float32).astype(np.float64)
    w = np.random.default_rng(5).normal(size=16).astype(np.float32).astype(np.float64)
    m = np.zeros(16)
    for epoch, size in enumerate(BATCHES):
        if epoch in GROWTH:
            wide, seed = GROWTH[epoch]
            new = np.random.default_rng(seed).normal(size=wide - len(w)).astype(np.float32)
            w, m = np.concatenate([w, new]), np.concatenate([m, np.zeros(len(new))])
        order = SampleOrder(96, size, 16, seed=5)
        for index in range(order.steps_in(epoch)):
            rows = order.batch(epoch, index, range(16))
            m = 0.9 * m + np.mean([np.sin(w * x[row]) for row in rows], axis=0)
            w = w - 0.05 * m
    return w


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    async def scenario():
        quiet = GrowingTown(tmp_path_factory.mktemp("quiet"))
        outcome = await quiet.run()
        # One generation for each size of the model: growth ends one as a new plan does.
        assert (outcome.status, outcome.generations) == ("completed", 1 + len(GROWTH))
        samples = [(step["samples"], step["batch_size"]) for step in quiet.events("step")]
        assert samples == [(n, n) for n in (16,) * 12 + (32,) * 6] + [(64, 64), (32, 64)] * 2
        return await quiet.weights()

    return asyncio.run(scenario())


def test_the_model_is_that_of_a_plain_loop(undisturbed):
    np.testing.assert_allclose(undisturbed, in_one_process(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3, 4, 5))]
)
def test_ranks_killed_at_random_moments_leave_no_trace(tmp_path, undisturbed, seed):
    rng = random.Random(seed)
    town = GrowingTown(tmp_path, checkpoint_s=rng.choice([60.0, 0.05]))
    killed = []

    async def killer(scheduler):
        for _ in range(rng.randint(1, 4)):
            at = town.cloud.computed + rng.randint(1, 60)
            await town.until(lambda at=at: town.cloud.computed >= at)
            victims = range(3) if rng.random() < 0.3 else [rng.randrange(3)]
            killed.extend([town.cloud.kill(rank) for rank in victims])

    async def scenario():
        return await town.run(killer), await town.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.status == "completed"
    assert killed
    assert np.array_equal(weights, undisturbed)


def test_a_job_killed_whole_right_after_growing_grows_again_from_the_same_state(
    tmp_path, undisturbed
):
    town = GrowingTown(tmp_path)

    async def killer(scheduler):
        await town.until(lambda: (2, 0) in town.cloud.invoked)
        at = town.cloud.computed + 12  # load, grow, and a part of the first step
        await town.until(lambda at=at: town.cloud.computed >= at)
        for rank in range(3):
            town.cloud.kill(rank)

    async def scenario():
        return await town.run(killer), await town.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.generations > 1 + len(GROWTH)
    assert np.array_equal(weights, undisturbed)


def test_no_rank_is_asked_for_the_gradient_of_nothing(tmp_path):
    """The last batch of an epoch has 6 samples, and three ranks share 16 virtual workers."""
    town = Town(tmp_path, batch_size=45, epochs=2)
    text = (tmp_path / "drift.py").read_text()
    asked = "        for x in samples:"
    (tmp_path / "drift.py").write_text(text.replace(asked, f"        assert samples\n{asked}"))
    assert asyncio.run(town.run()).status == "completed"
    assert [step["samples"] for step in town.events("step")] == [45, 45, 6] * 2
