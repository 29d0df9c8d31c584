"""A task whose weights show in their bits every step that was lost, doubled or out of order."""

import time

import numpy as np
from small import Regression


class Steady(Regression):
    """Momentum and noise of its own at each step; ``pace`` is the least that a step takes."""

    def __init__(self, gate: str = "", wait_at: int = 0, pace: float = 0.05) -> None:
        super().__init__(gate=gate, wait_at=wait_at)
        self.pace = pace

    def initialize(self, seed, total_steps):
        super().initialize(seed, total_steps)
        self.momentum = {name: np.zeros_like(value) for name, value in self.parameters.items()}

    def state(self):
        moments = {f"momentum.{name}": value for name, value in self.momentum.items()}
        return super().state() | moments

    def gradients(self, samples, into, ready):
        time.sleep(self.pace)
        done = super().gradients(samples, into, ready)
        noise = np.random.default_rng(int(self.steps)).standard_normal(self.width, np.float32)
        into["weight"] += noise * len(samples)
        return done

    def apply(self, mean, present):
        for name in present:
            self.momentum[name] *= 0.9
            self.momentum[name] += mean[name]
            self.parameters[name] -= 0.1 * self.lr * self.momentum[name]
        self.steps += 1
