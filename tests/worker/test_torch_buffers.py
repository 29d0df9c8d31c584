import math

import numpy as np
import pytest
import torch
from torch import nn

from smlt.errors import TaskError
from smlt.worker.torch_task import TorchTask


class Buffered(TorchTask):
    """A linear model beside the module under test, whose forward changes its buffers."""

    def dataset(self, data, split):
        return []

    def extra(self):
        return nn.BatchNorm1d(4)

    def model(self):
        return nn.ModuleDict({"extra": self.extra(), "linear": nn.Linear(4, 2)})

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, model, batch):
        return model["linear"](model["extra"](batch[0])).square().mean()


def buffered(module):
    return lambda: type("Case", (Buffered,), {"extra": lambda self: module()})()


def features(samples):
    return torch.from_numpy(np.stack([x for x, _ in samples]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batch_norm_statistics_are_averaged_by_samples(lockstep, samples, accumulate):
    make = type("Micro", (Buffered,), {"accumulate": accumulate})
    run = lockstep(make, 2)
    parts = [samples[:16], samples[16:]]
    run.step(parts)
    run.assert_ranks_agree()
    micro = parts
    if accumulate == 2:
        micro = [half for p in parts for half in (p[: len(p) // 2], p[len(p) // 2 :])]
    alone = []
    for part in micro:
        norm = nn.BatchNorm1d(4)
        norm(features(part))
        alone.append((len(part), norm.running_mean, norm.running_var))
    total = sum(count for count, *_ in alone)
    after = run.weights()
    for column, name in ((1, "extra.running_mean"), (2, "extra.running_var")):
        wanted = sum(row[0] * row[column].double() for row in alone) / total
        np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-7)
    assert after["extra.num_batches_tracked"] == 1
    run.step(parts)
    assert run.weights()["extra.num_batches_tracked"] == 2


def test_a_gradient_does_not_change_the_buffers_by_itself(samples, state_digest, zeroed_views):
    task = Buffered()
    task.initialize(0, None)
    before = state_digest(task)
    first, second = zeroed_views(task), zeroed_views(task)
    task.gradients(samples, first, lambda name: None)
    task.gradients(samples, second, lambda name: None)
    assert state_digest(task) == before
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_exception_in_a_step_leaves_the_state_as_it_was(samples, state_digest, zeroed_views):
    class Fails(Buffered):
        def loss(self, model, batch):
            super().loss(model, batch)
            raise RuntimeError("after the forward pass")

    task = Fails()
    task.initialize(0, None)
    before = state_digest(task)
    with pytest.raises(RuntimeError):
        task.gradients(samples, zeroed_views(task), lambda name: None)
    assert state_digest(task) == before


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        mask = torch.full((4, 4), -math.inf).triu(1)
        mask[0, 0] = -0.0
        self.register_buffer("mask", mask)
        self.register_buffer("big", torch.tensor(2**62 + 1))

    def forward(self, x):
        return x @ self.mask.softmax(-1)


def test_an_unchanged_buffer_keeps_its_bits(lockstep, samples):
    run = lockstep(buffered(Mask), 2)
    before = run.weights()
    run.step([samples[:16], samples[16:]])
    after = run.weights()
    assert not {name for name in run.present if name.startswith("buffer:")}
    for name in ("extra.mask", "extra.big"):
        assert after[name].tobytes() == before[name].tobytes()


class Observer(nn.Module):
    """Keeps extremes from infinity on, a flag, a replaced statistic and a count in float64."""

    def __init__(self):
        super().__init__()
        self.register_buffer("low", torch.full((4,), math.inf))
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("level", torch.zeros(4))
        self.register_buffer("count", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("coarse", torch.zeros(4, dtype=torch.bfloat16))
        self.register_buffer("phase", torch.zeros(4, dtype=torch.complex64))

    def forward(self, x):
        self.low.copy_(torch.minimum(self.low, x.detach().amin(0)))
        self.flag.fill_(True)
        self.level = 0.5 * self.level + 0.5 * x.mean(0)
        self.count[0] += 1
        self.coarse += 1
        self.phase += 1 + 2j
        return x


def test_extremes_flags_and_replaced_buffers_are_averaged(lockstep, samples):
    run = lockstep(buffered(Observer), 2)
    run.step([samples[:16], samples[16:]])
    run.assert_ranks_agree()
    after = {n: torch.from_numpy(np.array(w)) for n, w in run.weights().items()}
    lows = [features(part).amin(0) for part in (samples[:16], samples[16:])]
    torch.testing.assert_close(after["extra.low"], (16 * lows[0] + 8 * lows[1]) / 24)
    assert after["extra.flag"]
    torch.testing.assert_close(after["extra.level"], 0.5 * features(samples).mean(0))
    assert after["extra.count"].tolist() == [1.0, 0.0]
    assert after["extra.phase"].tolist() == [1 + 2j] * 4
    run.step([samples[:16], samples[16:]])
    assert run.weights()["extra.count"].tolist() == [2.0, 0.0]
    run.assert_ranks_agree()


class Cache(nn.Module):
    """Grows a table of constants when it needs a longer one, as rotary embeddings do."""

    def __init__(self, persistent=False):
        super().__init__()
        self.persistent = persistent
        self.register_buffer("table", torch.zeros(1), persistent=persistent)

    def forward(self, x):
        if len(self.table) < len(x):
            self.register_buffer("table", torch.zeros(len(x)), persistent=self.persistent)
        return x + self.table[: len(x), None]


def test_a_cache_that_is_not_persistent_may_grow(lockstep, samples):
    run = lockstep(buffered(Cache), 2)
    for _ in range(2):
        run.step([samples[:16], samples[16:]])
    run.assert_ranks_agree()


def test_a_persistent_buffer_that_grows_is_refused(lockstep, samples):
    run = lockstep(buffered(lambda: Cache(persistent=True)), 1)
    with pytest.raises(TaskError, match="persistent=False"):
        run.step([samples])


class Lazy(nn.Module):
    """Makes its table when it is first called, in a place that was kept for it or not."""

    def __init__(self, *, declared=True, persistent=False):
        super().__init__()
        self.persistent = persistent
        if declared:
            self.register_buffer("table", None, persistent=persistent)

    def forward(self, x):
        if getattr(self, "table", None) is None:
            self.register_buffer("table", torch.ones(4), persistent=self.persistent)
        return x + self.table


@pytest.mark.parametrize("declared", [True, False])
def test_a_cache_that_a_step_makes_is_no_part_of_the_state(lockstep, samples, declared):
    run = lockstep(buffered(lambda: Lazy(declared=declared)), 2)
    names = set(run.tasks[0].state())
    for _ in range(2):
        run.step([samples[:16], samples[16:]])
    run.tasks[0].measure(samples)
    assert set(run.tasks[0].state()) == names


def test_a_persistent_buffer_that_a_step_makes_is_refused(lockstep, samples):
    run = lockstep(buffered(lambda: Lazy(persistent=True)), 1)
    with pytest.raises(TaskError, match=r"table of Lazy .* persistent=False"):
        run.step([samples])


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("alias", self.scale.data)

    def forward(self, x):
        return x * self.scale


def test_a_buffer_that_shares_a_parameters_memory_moves_with_it(lockstep, samples):
    run = lockstep(buffered(Sharing), 2)
    run.step([samples[:16], samples[16:]])
    run.assert_ranks_agree()
    after = run.weights()
    assert (after["extra.scale"] != 1).all()
    assert np.array_equal(after["extra.alias"], after["extra.scale"])
