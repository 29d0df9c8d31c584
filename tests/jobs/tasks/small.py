"""Linear regression in NumPy that trains in a moment, and goes wrong in every way asked for."""

import os
import random
import time
from pathlib import Path

import numpy as np

import smlt

SAMPLES = 256
# Rows are dealt to 16 virtual workers in blocks of 16, so these are the last rank's, at each step.
LAST_RANKS = 240
GATE_S = 60.0


class Regression(smlt.Task):
    """Learns a line through exact points; ``gate`` makes it wait at step ``wait_at``."""

    def __init__(
        self,
        width: int = 40,
        lr: float = 0.05,
        gate: str = "",
        wait_at: int = 0,
        talk: bool = False,
    ) -> None:
        self.width = width
        self.lr = lr
        self.gate = gate
        self.wait_at = wait_at
        self.talk = talk

    def dataset(self, data: smlt.Data, split: str):
        rng = np.random.default_rng(0 if split == "train" else 1)
        x = rng.standard_normal((SAMPLES, self.width), dtype=np.float32)
        slope = np.linspace(-1, 1, self.width, dtype=np.float32)
        return list(zip(range(SAMPLES), x, x @ slope, strict=True))

    def initialize(self, seed, total_steps):
        rng = np.random.default_rng(seed)
        self.parameters = {
            "weight": 0.1 * rng.standard_normal(self.width, dtype=np.float32),
            "bias": np.zeros(1, np.float32),
        }
        self.steps = np.zeros((), np.int64)

    def state(self):
        return self.parameters | {"steps": self.steps}

    def weights(self):
        return self.parameters

    def gradients(self, samples, into, ready):
        step = int(self.steps) + 1
        rows = [row for row, _, _ in samples]
        if step == self.wait_at and self.waits(rows):
            wait_at(Path(self.gate))
        if self.talk:
            print(f"step {step} has {len(samples)} samples")
        self.trouble(step, max(rows, default=0) >= LAST_RANKS)
        x, y = np.stack([x for _, x, _ in samples]), np.array([y for _, _, y in samples])
        error = x @ self.parameters["weight"] + self.parameters["bias"] - y
        into["weight"][...] = error @ x
        into["bias"][...] = error.sum()
        return smlt.Contribution(self.loss(step, rows, float(np.square(error).sum() / 2)))

    def apply(self, mean, present):
        for name in present:
            self.parameters[name] -= self.lr * mean[name]
        self.steps += 1

    def measure(self, samples):
        error = sum(float(abs(self._predict(x) - y)) for _, x, y in samples)
        return {"error": smlt.Metric(error, len(samples))}

    def waits(self, rows):
        return True

    def trouble(self, step, is_last_rank):
        """What goes wrong before the gradients of a step; nothing here."""

    def loss(self, step, rows, loss):
        return loss

    def _predict(self, x):
        return x @ self.parameters["weight"] + self.parameters["bias"][0]


def wait_at(gate: Path) -> None:
    """Say that this process waits, and wait until the gate is opened."""
    if gate.exists():
        return
    gate.with_name(f"{gate.name}.{os.getpid()}").touch()
    deadline = time.monotonic() + GATE_S
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody opened {gate}")
        time.sleep(0.01)


class Dawdles(Regression):
    """Only the last rank waits at the gate."""

    def waits(self, rows):
        return max(rows) >= LAST_RANKS


class RaisesAtStep7(Regression):
    def trouble(self, step, is_last_rank):
        if step == 7 and is_last_rank:
            raise ValueError("the seventh batch is spoilt")


class RunsOut(Regression):
    """Takes more from an iterator than there is."""

    def trouble(self, step, is_last_rank):
        if step == 3:
            next(iter([]))


class TimesOut(Regression):
    def trouble(self, step, is_last_rank):
        if step == 3:
            raise TimeoutError("no answer")


class RaisesInInitialize(Regression):
    def initialize(self, seed, total_steps):
        raise RuntimeError("no weights today")


class RaisesInDataset(Regression):
    def dataset(self, data, split):
        return data["train_x.npy"]


class Diverges(Regression):
    def loss(self, step, rows, loss):
        return float("nan") if step == 5 and max(rows) >= LAST_RANKS else loss


class Hungry(Regression):
    def trouble(self, step, is_last_rank):
        if step == 3 and is_last_rank:
            self.food = np.ones(80 << 20, np.uint8).repeat(8)


class Exits(Regression):
    def trouble(self, step, is_last_rank):
        if step == 3 and is_last_rank:
            raise SystemExit(3)


class Worsens(Regression):
    """Its error grows with every step, so that the first evaluation stays the best."""

    def apply(self, mean, present):
        super().apply({name: -gradient for name, gradient in mean.items()}, present)


class Langevin(Regression):
    """Adds noise to its weights in every step, from the global generator."""

    def apply(self, mean, present):
        super().apply(mean, present)
        self.parameters["weight"] += np.float32(0.01 * random.gauss(0, 1))


class Iterates(Regression):
    def dataset(self, data, split):
        return iter(super().dataset(data, split))


class Incomplete(smlt.Task):
    def dataset(self, data, split):
        return []

    def initialize(self, seed, total_steps):
        pass
