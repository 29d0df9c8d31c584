"""Dynamic batching: the batch doubles twice, and the network grows once, while it trains.

    python examples/mnist/prepare.py
    smlt train examples/dynamic_batching/train.py:Doubling --data examples/mnist/data \\
        --epochs 6 --budget 0.05

Each change has the job look for the best plan again: larger batches feed more workers.
"""

from __future__ import annotations

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


class Doubling(smlt.TorchTask):
    grow_at = (4,)

    def __init__(self, width: int = 32, lr: float = 2e-3):
        self.width, self.lr = width, lr

    def dataset(self, data: smlt.Data, split: str):
        return Images(data[f"{split}_x.npy"], data[f"{split}_y.npy"])

    def batch_size(self, epoch: int) -> int:
        return 128 << min(epoch // 2, 2)  # 128, 256 from epoch 2 on, 512 from epoch 4 on

    def model(self):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, self.width), nn.ReLU(), nn.Linear(self.width, 10)
        )

    def grown(self, model, epoch):
        # One layer more, which at first lets everything through.
        layer = nn.Linear(self.width, self.width)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        *below, last = model
        return nn.Sequential(*below, layer, nn.ReLU(), last)

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.lr)

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(model(x), y)

    def evaluate(self, model, batch):
        x, y = batch
        return {"accuracy": ((model(x).argmax(1) == y).sum(), len(y))}
