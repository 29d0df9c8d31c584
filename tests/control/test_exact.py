"""Exact determinism: one digest for any number of ranks, and any sequence of them."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.weights import read_weights
from smlt.messages.job import ResourcePlan
from smlt.worker.gradient_tree import GradientTree
from tests.control.town import QUICK, Town, in_one_process

# All that couples the samples of a batch, draws random numbers, or keeps state of its own.
TASK = """
import torch
from torch import nn
import smlt

class Noisy(smlt.TorchTask):
    clip_norm = 1.0

    def dataset(self, data, split):
        generator = torch.Generator().manual_seed(len(split))
        x = torch.randn(90 if split == "train" else 37, 6, generator=generator)
        return [(row, row.sum().sin()) for row in x]

    def model(self):
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)
        )

    def optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.02)

    def scheduler(self, optimizer, total_steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=total_steps)

    def loss(self, model, batch):
        x, y = batch
        return (model(x)[:, 0] - y).square().mean()

    def evaluate(self, model, batch):
        x, y = batch
        return {"error": ((model(x)[:, 0] - y).square().sum(), len(y))}
"""


class NoisyTown(Town):
    def __init__(self, folder, **settings):
        folder.mkdir(exist_ok=True)
        (folder / "noisy.py").write_text(TASK)
        # 90 samples in batches of 37: shares differ, and the last batch is short.
        split = {"batch_size": 37, "virtual_workers": 8, "shard_bytes": 512}
        # Torch computes on the loop that all ranks share: a busy machine is no lost lease.
        patient = {"limits": replace(QUICK, lease_s=30, client_lease_s=30)}
        settings = {"keep_best": "error", "epochs": 4} | split | patient | settings
        super().__init__(folder, target="noisy.py:Noisy", **settings)

    async def digest(self, *beside):
        outcome = await self.run(*beside)
        assert outcome.status == "completed", outcome.message
        # Weights, moments, schedule, and what --keep-best remembers.
        return (await checkpoint.read_manifest(self.objects, "drift", outcome.newest)).digest


@pytest.fixture(scope="module")
def of_one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return asyncio.run(NoisyTown(folder, workers=1, determinism="exact").digest())


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_digest_is_that_of_one_rank(tmp_path, of_one_rank, workers):
    town = NoisyTown(tmp_path, workers=workers, determinism="exact")
    assert asyncio.run(town.digest()) == of_one_rank


def test_digest_is_the_same_for_a_sequence_of_ranks(tmp_path, of_one_rank):
    town = NoisyTown(tmp_path, workers=2, determinism="exact")

    async def replan(scheduler):
        for workers in (4, 1, 8):
            at = town.cloud.computed + 10
            await town.until(lambda at=at: town.cloud.computed >= at)
            await scheduler.request_plan(ResourcePlan(workers=workers, memory_mb=128))
            await town.until(lambda w=workers: town.progress.workers == w)

    assert asyncio.run(town.digest(replan)) == of_one_rank
    assert [event["workers"] for event in town.events("generation")] == [2, 4, 1, 8]


def test_virtual_workers_without_samples_change_no_bits(tmp_path):
    async def scenario(workers):
        # The last batch of an epoch has 6 samples for 16 virtual workers.
        town = Town(tmp_path / str(workers), workers=workers, batch_size=30, determinism="exact")
        await town.run()
        return await town.weights()

    for workers in (1, 16):
        (tmp_path / str(workers)).mkdir()
    assert asyncio.run(scenario(1)) == asyncio.run(scenario(16))


def test_fast_promises_no_such_thing(tmp_path):
    digests = {asyncio.run(NoisyTown(tmp_path / str(n), workers=n).digest()) for n in (1, 2)}
    assert len(digests) == 2


def test_workers_are_cut_to_a_power_of_two_with_a_notice(tmp_path):
    town = Town(tmp_path, workers=7, determinism="exact")

    async def scenario():
        await town.run()
        return (await read_weights(town.objects, JobObjects("drift").model))["w"].numpy()

    np.testing.assert_allclose(asyncio.run(scenario()), in_one_process(), rtol=2e-5, atol=2e-6)
    assert [event["ranks"] for event in town.events("roster")] == [[0, 1, 2, 3]]
    assert any("4 instead of 7" in notice for notice in town.progress.notices)


def test_lossy_wire_is_refused(tmp_path):
    outcome = asyncio.run(Town(tmp_path, determinism="exact", wire_dtype="bf16").run())
    assert (outcome.status, outcome.generations, outcome.failure.kind) == ("failed", 1, "user")
    assert "bf16 on the wire" in outcome.message


@pytest.mark.parametrize("leaves", [1, 2, 8])
def test_tree_adds_neighbours_first(leaves):
    rng = np.random.default_rng(leaves)
    parts = rng.normal(size=(leaves, 40)).astype(np.float32) * 10.0 ** rng.integers(-4, 4, 40)
    parts = parts.astype(np.float32)
    wanted = list(parts)
    while len(wanted) > 1:
        wanted = [a + b for a, b in zip(wanted[::2], wanted[1::2], strict=True)]
    buffer = GradientBuffer({"a": (30,), "b": (2, 5)})
    tree = GradientTree(buffer, leaves)
    for step in range(2):
        buffer.flat.fill(0.0)
        announced = []
        for index, part in enumerate(parts):
            views, ready = tree.leaf(index, announced.append)
            assert not any(view.any() for view in views.values())
            views["a"][...], views["b"][...] = part[:30], part[30:].reshape(2, 5)
            if step == 0:
                ready("b")
            tree.add(index)
        np.testing.assert_array_equal(buffer.flat, wanted[0])
        assert announced == (["b"] if step == 0 else [])
