"""A small convolutional network on MNIST: smlt train examples/mnist/train.py:Mnist --epochs 6"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import smlt


class Images:
    """Images of one split, scaled to about zero mean and unit variance."""

    def __init__(self, data: smlt.Data, split: str) -> None:
        self.x = data[f"{split}_x.npy"]
        self.y = data[f"{split}_y.npy"]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        pixels = self.x[index].astype(np.float32)
        return (pixels - 33.0) / 79.0, int(self.y[index])


class Mnist(smlt.TorchTask):
    clip_norm = 1.0

    def __init__(self, lr: float = 1e-2, width: int = 16) -> None:
        self.lr = lr
        self.width = width

    def dataset(self, data: smlt.Data, split: str) -> Images:
        return Images(data, split)

    def model(self) -> nn.Module:
        # Smooth everywhere: at the kink of a ReLU, or a tie in max pooling, a rounding error picks
        # the gradient, and Adam makes a step of it. So the number of workers would show.
        width = self.width
        return nn.Sequential(
            nn.Conv2d(1, width, 5, stride=2, padding=2),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, 10),
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.lr)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, total_steps: int | None
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        if total_steps is None:
            return None
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps)

    def loss(self, model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        logits = model(x)
        self.log("train_accuracy", (logits.argmax(1) == y).float().mean(), weight=len(y))
        return F.cross_entropy(logits, y)

    def evaluate(
        self, model: nn.Module, batch: list[torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, int]]:
        x, y = batch
        logits = model(x)
        return {
            "accuracy": ((logits.argmax(1) == y).sum(), len(y)),
            "test_loss": (F.cross_entropy(logits, y, reduction="sum"), len(y)),
        }
