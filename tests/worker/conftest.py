import numpy as np
import pytest
import torch
from torch import nn

from smlt.io.tensor import as_tensor
from smlt.worker.torch_task import TorchTask


class Lockstep:
    """Ranks in one process: the averaging that the parameter store does, written in float64."""

    def __init__(self, make, ranks, total_steps=100):
        self.tasks = [make() for _ in range(ranks)]
        for task in self.tasks:
            task.initialize(seed=7, total_steps=total_steps)
        self.present = frozenset()

    def step(self, shares):
        total = sum(len(share) for share in shares)
        sums, absent = [], []
        for task, share in zip(self.tasks, shares, strict=True):
            views = zeroed(task)
            contribution = task.gradients(share, views, lambda name: None)
            sums.append(views)
            absent.append(contribution.absent)
        names = set(self.tasks[0].averaged())
        self.present = frozenset(names - frozenset.intersection(*absent))
        mean = {
            name: np.asarray(
                sum(views[name].astype(np.float64) for views in sums) / total, np.float32
            )
            for name in names
        }
        for task in self.tasks:
            task.apply({name: array.copy() for name, array in mean.items()}, self.present)

    def weights(self, rank=0):
        return {name: as_tensor(t).numpy().copy() for name, t in self.tasks[rank].weights().items()}

    def assert_ranks_agree(self):
        first = digest(self.tasks[0])
        for task in self.tasks[1:]:
            assert digest(task) == first


def zeroed(task):
    return {name: np.zeros(shape, np.float32) for name, shape in task.averaged().items()}


def digest(task):
    tensors = {
        n: (as_tensor(t).dtype, as_tensor(t).data.tobytes()) for n, t in task.state().items()
    }
    return tensors, task.scalars()


class Regression(TorchTask):
    """Samples are (x, y) arrays; subclasses change one thing."""

    def dataset(self, data, split):
        return []

    def model(self):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()


@pytest.fixture
def lockstep():
    return Lockstep


@pytest.fixture
def regression():
    return Regression


@pytest.fixture
def state_digest():
    return digest


@pytest.fixture
def zeroed_views():
    return zeroed


@pytest.fixture
def samples():
    rng = np.random.default_rng(3)
    return [
        (rng.standard_normal(4).astype(np.float32), rng.standard_normal(2).astype(np.float32))
        for _ in range(24)
    ]
