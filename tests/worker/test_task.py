import random

import numpy as np
import pytest
import torch

from smlt.errors import CheckpointError, TaskError
from smlt.io.tensor import as_tensor
from smlt.worker.seeding import derive_seed
from smlt.worker.task import Contribution, Task


class Mean(Task):
    """Learns the mean of its samples."""

    def dataset(self, data, split):
        return [1.0, 2.0]

    def initialize(self, seed, total_steps):
        self.mean = np.zeros(2, np.float32)
        self.steps = np.zeros((), np.int64)

    def state(self):
        return {"mean": self.mean, "steps": self.steps}

    def weights(self):
        return {"mean": self.mean}

    def gradients(self, samples, into, ready):
        into["mean"][...] = sum(self.mean - sample for sample in samples)
        return Contribution(0.0)

    def apply(self, mean, present):
        self.mean -= mean["mean"]
        self.steps += 1


def started():
    task = Mean()
    task.initialize(0, None)
    return task


def test_a_neutral_task_has_defaults_for_the_rest():
    task = started()
    assert task.averaged() == {"mean": (2,)}
    assert task.scalars() == {}
    assert task.drain_metrics() == {}
    assert task.measure([]) == {}
    assert not task.evaluates


def test_the_default_load_copies_in_place():
    task, other = started(), started()
    held = other.mean
    task.apply({"mean": np.ones(2, np.float32)}, frozenset({"mean"}))
    other.load_state({n: as_tensor(a) for n, a in task.state().items()}, {})
    assert held.tolist() == [-1, -1]
    assert other.steps == 1
    other.load_weights({"mean": as_tensor(np.full(2, 5, np.float32))})
    assert held.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "missing mean"),
        ({"extra": np.zeros(1)}, "unexpected extra"),
        ({"mean": np.zeros(3, np.float32)}, r"mean has shape \(3,\), not \(2,\)"),
        ({"mean": np.zeros(2)}, "mean is F64, but this task has it as F32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(change, message):
    task = started()
    state = {**task.state(), "steps": np.array(9), **change}
    given = {n: as_tensor(a) for n, a in state.items() if a is not None}
    with pytest.raises(CheckpointError, match=message):
        task.load_state(given, {})
    assert task.steps == 0
    given.pop("steps")
    with pytest.raises(TaskError, match=message):
        task.load_weights(given)


def test_an_incomplete_task_cannot_be_made():
    class Half(Task):
        def dataset(self, data, split):
            return []

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_each_place_has_its_own_seed():
    seeds = {derive_seed(s, step, v) for s in range(3) for step in range(50) for v in range(16)}
    assert len(seeds) == 3 * 50 * 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert derive_seed(2**64, 1) != derive_seed(0, 1)


def test_seeding_sets_every_global_generator(regression):
    def draw(task, seed):
        task.seed_generators(seed)
        return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002

    task = regression()
    big = 2**62 + 12345
    assert draw(task, big) == draw(task, big)
    assert all(a != b for a, b in zip(draw(task, big), draw(task, big + 2**40), strict=True))
    assert draw(started(), 5)[:2] == draw(task, 5)[:2]
