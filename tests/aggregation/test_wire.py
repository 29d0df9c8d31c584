"""Gradients rounded on the wire: equal on all ranks, and no rounding is ever lost."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt.aggregation.wire import Wire
from smlt.errors import ConfigError, FrameError, UserError
from smlt.io.frame import Meta, ShardHeader
from smlt.io.memory_objects import MemoryObjectStore
from smlt.messages.job import Position
from smlt.worker.residuals import load_residuals, save_residual
from tests.aggregation.worlds import Case, world

# Half a unit in the last place, at most, relative to the value.
HALF_ULP = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def reduce_all(case, plan, wires):
    """Take the case's steps on every rank; return the means of each step, alike on all ranks."""

    async def one(rank):
        number, means = rank.members.rank, []
        for step in range(case.steps):
            flat = case.gradients[step, number].copy()
            weight = case.weights[step, number]
            await rank.average(step, plan, flat, weight=weight, wire=wires[number])
            means.append(flat)
        return means

    async def run():
        async with world(case.world_size) as ranks:
            return await asyncio.gather(*map(one, ranks))

    every = asyncio.run(run())
    for means in every[1:]:
        np.testing.assert_array_equal(np.stack(means), np.stack(every[0]))
    return np.stack(every[0])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    dtype=st.sampled_from(["bf16", "fp16"]),
    world_size=st.integers(2, 6),
    elements=st.integers(0, 2000),
    aggregators=st.integers(1, 6),
    shard_bytes=st.sampled_from([64, 1024, 4096]),
)
def test_what_is_not_applied_is_owed(seed, dtype, world_size, elements, aggregators, shard_bytes):
    case = Case(seed, world_size, elements, steps=4)
    case.weights[:] = case.weights[0] + 1  # what is owed is in units of the sum
    plan = case.plan(min(aggregators, world_size), max(shard_bytes, elements // 10))
    wires = [Wire.of(dtype, elements, world_size) for _ in range(world_size)]

    applied = reduce_all(case, plan, wires).astype(np.float64).sum(0)

    total = case.weights[0].sum()
    true = case.gradients.astype(np.float64).sum((0, 1)) / total
    owed = sum(wire.owed.astype(np.float64) for wire in wires) / total
    size = np.abs(case.gradients).sum((0, 1)) / total
    np.testing.assert_array_less(np.abs(applied + owed - true), 1e-5 * size + 1e-12)
    assert all(wire.is_whole for wire in wires)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_one_step_is_off_by_no_more_than_its_roundings(dtype):
    case = Case(3, 4, 70_001)
    case.weights[:] += 1
    wires = [Wire.of(dtype, case.elements, 4) for _ in range(4)]

    [mean] = reduce_all(case, case.plan(), wires)

    exact, slack = case.mean(0)
    sizes = np.abs(case.gradients[0]).sum(0) / case.weights[0].sum()
    # Each contribution is rounded, then the mean; below fp16's smallest normal, absolutely.
    assert np.all(np.abs(mean - exact) <= slack + 2.01 * HALF_ULP[dtype] * sizes + 2.0**-24)
    assert np.any(mean != exact)


def test_a_change_too_small_for_the_wire_is_not_lost():
    case = Case(1, 2, 64, steps=200)
    case.gradients[:] = 1.0 + 2.0**-12  # bf16 has 1.0 and 1.0078125
    case.weights[:] = 1.0
    wires = [Wire.of("bf16", 64, 2) for _ in range(2)]

    applied = reduce_all(case, case.plan(), wires).astype(np.float64).mean(0)

    # What is owed at the end is the error of one step, not of 200.
    np.testing.assert_allclose(applied, (1 + 2.0**-12), atol=2.0**-7 / 200)


def test_one_rank_rounds_nothing():
    assert Wire.of("bf16", 10, 1).owed is None


def test_fp16_refuses_what_it_cannot_hold():
    case = Case(1, 2, 100)
    case.gradients[0, 1, 50] = 70_000.0
    with pytest.raises(UserError, match="beyond the 65,504 that fp16 holds"):
        reduce_all(case, case.plan(), [Wire.of("fp16", 100, 2) for _ in range(2)])


def test_ranks_that_do_not_agree_on_the_wire_are_told():
    case = Case(1, 2, 100)
    with pytest.raises(FrameError, match=r"(bf16|fp32) (was|were) expected"):
        reduce_all(case, case.plan(), [Wire.of("bf16", 100, 2), Wire()])


def test_a_dtype_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="write fp32, bf16, fp16 or auto"):
        Wire.of("fp8", 10, 2)


@pytest.mark.parametrize("ranks_later", [1, 2, 3, 4, 7])
def test_other_ranks_take_over_what_was_owed(ranks_later):
    rng = np.random.default_rng(0)
    owed = rng.standard_normal((3, 50)).astype(np.float32)
    at = Position(generation=2, step=7)

    async def run():
        objects = MemoryObjectStore(f"owed{ranks_later}")
        for rank in range(3):
            await save_residual(objects, "job", at, rank, owed[rank])
        wires = [Wire("bf16", np.zeros(50, np.float32)) for _ in range(ranks_later)]
        for rank, wire in enumerate(wires):
            await load_residuals(objects, "job", at, rank, ranks_later, wire)
        return [wire.owed for wire in wires]

    taken = asyncio.run(run())
    if ranks_later == 3:
        np.testing.assert_array_equal(taken, owed)
    np.testing.assert_allclose(sum(taken), owed.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_values_of_16_bits_lose_nothing_on_their_way_but_half_the_bytes(dtype):
    case = Case(5, 3, 40_000)
    case.weights[:] = 1.0
    kind = getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype])

    def rounded(array):
        return torch.from_numpy(array).to(kind).to(torch.float32).numpy()

    case.gradients[:] = rounded(case.gradients)
    plan = case.plan(shard_bytes=64 << 10)
    lossless = reduce_all(case, plan, [Wire() for _ in range(3)])
    np.testing.assert_array_equal(
        reduce_all(case, plan, [Wire(dtype) for _ in range(3)]), rounded(lossless)
    )
    header = ShardHeader(0, 1.0, Meta())
    sizes = [
        sum(len(piece) for piece in wire.contribution(case.gradients[0, 0], slice(None), header))
        for wire in (Wire(dtype), Wire())
    ]
    assert sizes[0] < 0.51 * sizes[1]
