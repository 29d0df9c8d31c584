"""Online learning: data comes in bursts, and what has been learnt is kept from one to the next.

    python examples/online_learning/arrive.py 1
    smlt train examples/online_learning/train.py:Drifting --watch --epochs 4 --workers 2
    python examples/online_learning/arrive.py 2      # in another terminal, when it waits

Between bursts no function runs, and none is paid for. Ctrl-C ends the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import smlt


class Rows:
    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, float]:
        return np.asarray(self.x[i]), float(self.y[i])


class Drifting(smlt.Task):
    """Linear regression whose truth drifts: the newest burst is what counts."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.9) -> None:
        self.lr, self.momentum = lr, momentum

    def dataset(self, data: smlt.Data, split: str) -> Rows:
        # Train on what has just come; test on the end of it.
        name = max(name for name in data.added if name.endswith(".npz"))
        burst = data[name]
        rows = slice(0, -64) if split == "train" else slice(-64, None)
        return Rows(np.asarray(burst["x"])[rows], np.asarray(burst["y"])[rows])

    def initialize(self, seed: int, total_steps: int | None) -> None:
        self.w = np.zeros(16, np.float32)
        self.velocity = np.zeros(16, np.float32)

    def state(self) -> dict[str, Any]:
        return {"w": self.w, "velocity": self.velocity}

    def weights(self) -> dict[str, Any]:
        return {"w": self.w}

    def gradients(self, samples: Sequence[Any], into: Any, ready: Any) -> smlt.Contribution:
        x = np.array([x for x, _ in samples], np.float32).reshape(-1, 16)
        error = x @ self.w - np.array([y for _, y in samples], np.float32)
        into["w"][...] = error @ x
        return smlt.Contribution(float(error @ error) / 2)

    def apply(self, mean: Any, present: frozenset[str]) -> None:
        self.velocity *= self.momentum
        self.velocity += mean["w"]
        self.w -= self.lr * self.velocity

    def measure(self, samples: Sequence[Any]) -> dict[str, smlt.Metric]:
        error = sum(abs(float(x @ self.w) - y) for x, y in samples)
        return {"error": smlt.Metric(error, len(samples))}
