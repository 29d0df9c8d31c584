"""Softmax regression in NumPy, without torch: smlt train examples/mnist/softmax.py:Softmax"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

import smlt


class Softmax(smlt.Task):
    def __init__(self, lr: float = 0.1, momentum: float = 0.9) -> None:
        self.lr = lr
        self.momentum = momentum

    def dataset(self, data: smlt.Data, split: str) -> list[tuple[np.ndarray, int]]:
        # 13 MB: small enough to be held as a list, which is a map-style dataset too.
        x = np.asarray(data[f"{split}_x.npy"]).reshape(-1, 784) / np.float32(255)
        return list(zip(x, np.asarray(data[f"{split}_y.npy"]), strict=True))

    def initialize(self, seed: int, total_steps: int | None) -> None:
        shapes = {"weight": (10, 784), "bias": (10,)}
        self.parameters = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
        self.velocity = {n: np.zeros(s, np.float32) for n, s in shapes.items()}

    def state(self) -> dict[str, np.ndarray]:
        return self.parameters | {f"velocity:{n}": v for n, v in self.velocity.items()}

    def weights(self) -> dict[str, np.ndarray]:
        return self.parameters

    def gradients(
        self, samples: Sequence, into: Mapping[str, np.ndarray], ready: Callable[[str], None]
    ) -> smlt.Contribution:
        x, y = self._batch(samples)
        probabilities = self._predict(x)
        error = probabilities - np.eye(10, dtype=np.float32)[y]
        into["weight"][...] = error.T @ x
        into["bias"][...] = error.sum(0)
        return smlt.Contribution(float(-np.log(probabilities[range(len(y)), y] + 1e-9).sum()))

    def apply(self, mean: Mapping[str, np.ndarray], present: frozenset[str]) -> None:
        for name in present:
            self.velocity[name] *= self.momentum
            self.velocity[name] += mean[name]
            self.parameters[name] -= self.lr * self.velocity[name]

    def measure(self, samples: Sequence) -> dict[str, smlt.Metric]:
        x, y = self._batch(samples)
        correct = (self._predict(x).argmax(1) == y).sum()
        return {"accuracy": smlt.Metric(float(correct), len(y))}

    def _predict(self, x: np.ndarray) -> np.ndarray:
        logits = x @ self.parameters["weight"].T + self.parameters["bias"]
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def _batch(self, samples: Sequence) -> tuple[np.ndarray, np.ndarray]:
        x, y = zip(*samples, strict=True)
        return np.stack(x), np.array(y)
