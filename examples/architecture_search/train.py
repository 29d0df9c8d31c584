"""Architecture search: networks of several widths and depths share one budget.

    python examples/mnist/prepare.py
    smlt search examples/architecture_search/train.py:Mlp --data examples/mnist/data \\
        --try width=4,16,64 --try depth=1,2 --keep-best accuracy --epochs 4 --budget 0.02

All six are trained for an epoch, the better three for two, and the best two to the end.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

import smlt


class Images(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return torch.tensor(self.x[i] / 255.0, dtype=torch.float32), int(self.y[i])


class Mlp(smlt.TorchTask):
    def __init__(self, width: int = 16, depth: int = 1, lr: float = 1e-2):
        self.width, self.depth, self.lr = width, depth, lr

    def dataset(self, data: smlt.Data, split: str):
        return Images(data[f"{split}_x.npy"], data[f"{split}_y.npy"])

    def model(self):
        sizes = [784] + [self.width] * self.depth
        layers = [
            layer
            for inside, outside in pairwise(sizes)
            for layer in (nn.Linear(inside, outside), nn.ReLU())
        ]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr)

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y)

    def evaluate(self, model, batch):
        x, y = batch
        return {"accuracy": ((model(x).argmax(1) == y).sum(), len(y))}
