"""The task that simulated jobs train, and what its weights must be after every step.

Its gradients are small whole numbers, so that their sums are exact in whatever order and by
however many ranks they are added: a plain loop over whole batches gives the very same bits. And
each depends on the weights, so that a step lost, doubled or mixed shows in all that follow.
"""

from __future__ import annotations

import numpy as np

import smlt
from smlt.worker.sample_order import SampleOrder
from tests.simulation.loop import PROCESS


class State:
    def __init__(self, size: int) -> None:
        self.w = (np.arange(size) % 5 - 2).astype(np.float32)
        self.m = np.zeros(size, np.float32)
        self.steps = np.zeros((), np.int64)

    def gradient(self, x: int):
        place = np.floor(self.w * 4).astype(np.int64)
        numbers = place * 7 + x * 13 + int(self.steps) * 5 + np.arange(self.w.size) * 3
        return (numbers % 17 - 8).astype(np.float32)

    def step(self, mean) -> None:
        self.m = self.m * np.float32(0.5) + mean
        self.w = self.w - np.float32(0.25) * self.m
        self.steps = self.steps + 1

    @property
    def bits(self) -> bytes:
        return self.w.tobytes() + self.m.tobytes()


class Walk(smlt.Task):
    def __init__(self, size: int = 48, samples: int = 40) -> None:
        self.size, self.samples = size, samples

    def dataset(self, data, split):
        return list(range(self.samples))

    def initialize(self, seed, total_steps):
        self.walk = State(self.size)
        self.loaded()

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
        return smlt.Contribution(float(into["w"].sum()))

    def apply(self, mean, present):
        self.walk.step(mean["w"])
        PROCESS.get().notice_state("applied", int(self.walk.steps), self.walk.bits)

    def loaded(self):
        PROCESS.get().notice_state("holds", int(self.walk.steps), self.walk.bits)


def trajectory(size: int, samples: int, batch: int, epochs: int, seed: int) -> list[bytes]:
    """Return the bits of the state at the start of each step, and at the end."""
    state = State(size)
    order = SampleOrder(samples, batch, 16, seed)
    bits = [state.bits]
    for step in range(epochs * order.steps_in(0)):
        rows = order.batch(*divmod(step, order.steps_in(0)), range(16))
        total = np.sum([state.gradient(int(row)) for row in rows], axis=0, dtype=np.float32)
        state.step(total * np.float32(1 / len(rows)))
        bits.append(state.bits)
    return bits
