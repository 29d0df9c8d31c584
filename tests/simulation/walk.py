"""The task that simulated jobs train, and what its weights must be after every step.

Its gradients are small whole numbers, so that their sums are exact in whatever order, by however
many ranks and in however few bits on the wire they are added: a plain loop over whole batches gives
the very same bits. Where a job promises the same bits for any number of ranks (``exact``) they are
fractions instead, whose sum depends on the order. And each depends on the weights, so that a step
lost, doubled or mixed shows in all that follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import smlt
from smlt.worker.sample_order import SampleOrder
from smlt.worker.task import Metric
from tests.simulation.loop import PROCESS

VIRTUAL_WORKERS = 16
SAMPLES, BATCH = 40, 16
EPOCH = 3
"""Training steps in one."""
_FRACTION = np.float32(0.1)


def first_weights(size: int, given: bool = False):
    """What a job begins with: what the task makes, or the user has given."""
    return (np.arange(size) % (7 if given else 5) - 2).astype(np.float32)


class State:
    def __init__(self, size: int, fractions: bool) -> None:
        self.w = first_weights(size)
        self.m = np.zeros(size, np.float32)
        self.steps = np.zeros((), np.int64)
        self._fractions = fractions

    def gradient(self, x: int):
        place = np.floor(self.w * 4).astype(np.int64)
        numbers = place * 7 + x * 13 + int(self.steps) * 5 + np.arange(self.w.size) * 3
        whole = (numbers % 17 - 8).astype(np.float32)
        return whole * _FRACTION if self._fractions else whole

    def height(self, x: int) -> float:
        """What is measured of a test sample: a whole number below 97."""
        return float((int(np.floor(self.w * 4).sum()) + 31 * x + 7 * int(self.steps)) % 97)

    def step(self, mean) -> None:
        self.m = self.m * np.float32(0.5) + mean
        self.w = self.w - np.float32(0.25) * self.m
        self.steps = self.steps + 1

    @property
    def bits(self) -> bytes:
        return self.w.tobytes() + self.m.tobytes()


class Walk(smlt.Task):
    def __init__(self, size: int = 48, tests: int = 0, fractions: bool = False) -> None:
        self.size, self.tests, self.fractions = size, tests, fractions

    @property
    def evaluates(self) -> bool:
        return self.tests > 0

    def dataset(self, data, split):
        return list(range(SAMPLES if split == "train" else self.tests))

    def initialize(self, seed, total_steps):
        # Not yet a state that counts: weights may be given, or a checkpoint be loaded.
        self.walk = State(self.size, self.fractions)

    def state(self):
        return {"w": self.walk.w, "m": self.walk.m, "steps": self.walk.steps}

    def weights(self):
        return {"w": self.walk.w}

    def load_state(self, tensors, scalars):
        super().load_state(tensors, scalars)
        self.loaded()

    def gradients(self, samples, into, ready):
        for x in samples:
            into["w"] += self.walk.gradient(x)
        ready("w")
        return smlt.Contribution(float(into["w"].sum()))

    def measure(self, samples):
        return {"height": Metric(sum(self.walk.height(x) for x in samples), len(samples))}

    def apply(self, mean, present):
        self.walk.step(mean["w"])
        PROCESS.get().walk = self.walk
        PROCESS.get().notice_state("applied", int(self.walk.steps), self.walk.bits)

    def loaded(self):
        PROCESS.get().notice_state("holds", int(self.walk.steps), self.walk.bits)


@dataclass(frozen=True)
class Course:
    """An undisturbed run, computed by a plain loop."""

    states: list[bytes]
    """After so many training steps."""
    trained: list[int]
    """Training steps done before each numbered step, evaluations being numbered as well."""
    heights: list[float]
    """What each evaluation has measured."""

    def at(self, step: int) -> bytes:
        """The bits of the state at the start of a numbered step."""
        return self.states[self.trained[step]]

    @property
    def best(self) -> bytes:
        """The bits of the first state that was measured to be the highest."""
        return self.states[EPOCH * (1 + self.heights.index(max(self.heights)))]


def course(
    size: int,
    epochs: int,
    seed: int,
    *,
    tests: int = 0,
    until: float | None = None,
    fractions: bool = False,
    given: bool = False,
) -> Course:
    """Take every step of a job; ``until`` is the mean height at which an evaluation ends it."""
    state = State(size, fractions)
    state.w = first_weights(size, given)
    order = SampleOrder(SAMPLES, BATCH, VIRTUAL_WORKERS, seed)
    states, trained, heights = [state.bits], [0], []
    for epoch in range(epochs):
        for batch in range(EPOCH):
            count = min(BATCH, SAMPLES - batch * BATCH)
            leaves = [_leaf(state, order, epoch, batch, v) for v in range(VIRTUAL_WORKERS)]
            state.step(_tree_sum(leaves) * np.float32(1 / count))
            states.append(state.bits)
            trained.append(len(states) - 1)
        if tests:
            trained.append(len(states) - 1)
            heights.append(sum(map(state.height, range(tests))) / tests)
            if until is not None and heights[-1] >= until:
                break
    return Course(states, trained, heights)


def _leaf(state: State, order: SampleOrder, epoch: int, batch: int, v: int):
    total = np.zeros(state.w.size, np.float32)
    for row in order.batch(epoch, batch, range(v, v + 1)):
        total += state.gradient(int(row))
    return total


def _tree_sum(leaves):
    while len(leaves) > 1:
        leaves = [a + b for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
    return leaves[0]
