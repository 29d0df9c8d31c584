"""A network that learns noise: as much work as it is told to, and a state as large."""

from __future__ import annotations

import json
import time
from typing import Any

import spans
import torch

import smlt
from smlt.aggregation.notices import Notices
from smlt.io.valkey import ValkeyStore
from smlt.worker import divergence
from smlt.worker.divergence_watch import DivergenceWatch
from smlt.worker.ending import Ending
from smlt.worker.generation import Generation
from smlt.worker.periodic_save import PeriodicSave
from smlt.worker.step_reports import StepReports

WATCHED = [
    (Generation, "_renew", "leases and heartbeats"),
    (ValkeyStore, "values", "leases and heartbeats"),
    (Generation, "flags", "leases and heartbeats"),
    (Notices, "_dispatch", "control stream"),
    (PeriodicSave, "begin", "checkpoints"),
    (PeriodicSave, "_save", "checkpoints"),
    (Ending, "save", "checkpoints"),
    (divergence, "digests_of", "divergence alarm"),
    (DivergenceWatch, "compare", "divergence alarm"),
    (StepReports, "record", "reports"),
    (StepReports, "send", "reports"),
    (Generation, "report", "reports"),
]
SAMPLES = 4096
EVERY_S = 2.0

for owner, method, name in WATCHED:
    spans.watch(owner, method, name)
spans.follow_threads()


class Noise(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(SAMPLES, width, generator=generator)
        self.y = torch.randint(10, (SAMPLES,), generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


class Perceptron(smlt.TorchTask):
    def __init__(self, width: int = 1024, layers: int = 4) -> None:
        self.width, self.layers = width, layers
        self._told = 0.0

    def dataset(self, data: Any, split: str) -> Any:
        return Noise(self.width)

    def model(self) -> torch.nn.Module:
        hidden = [
            layer
            for _ in range(self.layers)
            for layer in (torch.nn.Linear(self.width, self.width), torch.nn.ReLU())
        ]
        return torch.nn.Sequential(*hidden, torch.nn.Linear(self.width, 10))

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=1e-4)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        if time.monotonic() - self._told > EVERY_S:
            self._told = time.monotonic()
            print("spans", json.dumps(spans.snapshot()), flush=True)
        x, y = batch
        return torch.nn.functional.cross_entropy(model(x), y)
