"""Reduce and cast, reduce and step: the same as doing one after the other."""

import numpy as np
import pytest
import torch

from tests.core.oracles import bf16_bits, expected, from_bf16, normal_shards, same_bits


def torch_bf16(array):
    return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("count", [0, 1, 17, 50_001])
def test_reduce_cast_rounds_the_mean_to_nearest_even(shard_reduce, rng, count):
    shards = normal_shards(rng, 9, count)
    mean = expected(shards, "tree", None, 1 / 9)
    half, brain = np.empty(count, np.float16), np.empty(count, np.uint16)

    shard_reduce.reduce_cast(shards, half, wire_dtype="fp16", scale=1 / 9)
    shard_reduce.reduce_cast(shards, brain, wire_dtype="bf16", scale=1 / 9)

    assert same_bits(half, mean.astype(np.float16))
    assert same_bits(brain, torch_bf16(mean))


def test_cast_of_every_kind_of_float(shard_reduce, rng):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves.view(np.uint32)[:, None] + np.arange(0, 0x4000, 0xFFF, dtype=np.uint32)).ravel()
    floats = np.concatenate([ties, rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)])
    floats = floats.astype(np.uint32).view(np.float32)
    half, brain = np.empty(floats.size, np.float16), np.empty(floats.size, np.uint16)

    shard_reduce.reduce_cast([floats], half, wire_dtype="fp16")
    shard_reduce.reduce_cast([floats], brain, wire_dtype="bf16")

    with np.errstate(all="ignore"):
        assert np.array_equal(half, floats.astype(np.float16), equal_nan=True)
    assert np.array_equal(from_bf16(brain), from_bf16(torch_bf16(floats)), equal_nan=True)


@pytest.mark.parametrize("wire_dtype", ["fp16", "bf16"])
def test_error_feedback_loses_nothing_over_many_steps(shard_reduce, rng, wire_dtype):
    """What was sent, plus the residual, is all that was ever to be sent."""
    residual = np.zeros(5000, np.float32)
    wire = np.empty(5000, np.uint16)
    sent, meant = np.zeros((2, 5000))
    for _ in range(50):
        shards = normal_shards(rng, 3, 5000)
        shard_reduce.reduce_cast(shards, wire, wire_dtype=wire_dtype, residual=residual, scale=0.1)
        sent += wire.view(np.float16) if wire_dtype == "fp16" else from_bf16(wire)
        meant += expected(shards, "tree", None, 0.1)

    assert np.abs(sent + residual - meant).max() < 1e-5
    assert np.abs(residual).max() < 0.01


def test_error_feedback_restarts_where_nothing_finite_was_sent(shard_reduce):
    residual = np.full(3, 0.5, np.float32)
    wire = np.empty(3, np.float16)

    shard_reduce.reduce_cast(
        [np.array([1e30, np.nan, 1.0], np.float32)], wire, wire_dtype="fp16", residual=residual
    )

    assert wire[0] == np.inf
    assert np.isnan(wire[1])
    assert wire[2] == 1.5
    assert residual.tolist() == [0.0, 0.0, 0.0]


def torch_steps(make, start, gradients):
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = make([param])
    for gradient in gradients:
        param.grad = torch.from_numpy(gradient)
        optimizer.step()
    return param.detach().numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.01},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.0, "dampening": 0.1},
    ],
)
def test_reduce_sgd_steps_as_torch_does(shard_reduce, rng, options):
    start = rng.standard_normal(20_003).astype(np.float32)
    steps = [normal_shards(rng, 9, 20_003) for _ in range(5)]
    means = [expected(shards, "tree", None, 1 / 9) for shards in steps]
    want = torch_steps(lambda p: torch.optim.SGD(p, lr=0.1, **options), start, means)

    param, velocity = start.copy(), np.zeros_like(start)
    for step, shards in enumerate(steps):
        shard_reduce.reduce_sgd(
            shards,
            param,
            velocity if "momentum" in options else None,
            lr=0.1,
            first_step=step == 0,
            scale=1 / 9,
            **options,
        )

    # One unit in the last place a step: torch may fuse a multiply and an add, we never do.
    assert np.allclose(param, want, rtol=5 * 2**-23, atol=5 * 2**-24)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_reduce_adamw_steps_as_torch_does(shard_reduce, rng, weight_decay):
    start = rng.standard_normal(20_003).astype(np.float32)
    steps = [normal_shards(rng, 4, 20_003) for _ in range(5)]
    means = [expected(shards, "tree", None, 1 / 4) for shards in steps]
    want = torch_steps(
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=weight_decay, fused=True), start, means
    )

    param, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, shards in enumerate(steps, 1):
        norm = shard_reduce.reduce_adamw(
            shards, param, first, second, step=step, lr=0.01, weight_decay=weight_decay,
            scale=1 / 4, norm=True,
        )  # fmt: skip

    # An update of at most lr, whose quotient is right to a few units in the last place.
    assert np.allclose(param, want, rtol=5 * 2**-23, atol=5 * 0.01 * 2**-20)
    assert norm == pytest.approx(float(np.sum(means[-1].astype(np.float64) ** 2)), rel=1e-12)


def test_fused_forms_take_halves(shard_reduce, rng):
    shards = [bf16_bits(shard) for shard in normal_shards(rng, 3, 100)]
    param, plain = np.zeros((2, 100), np.float32)

    shard_reduce.reduce_sgd(shards, param, lr=1.0, dtype="bf16")
    shard_reduce.reduce(shards, plain, dtype="bf16")

    assert np.array_equal(param, -plain)


def test_fused_forms_refuse(shard_reduce):
    shard, other = np.ones((2, 4), np.float32)
    wire = np.empty(4, np.uint16)

    with pytest.raises(ValueError, match="one of fp16, bf16, not 'fp32'"):
        shard_reduce.reduce_cast([shard], wire, wire_dtype="fp32")
    with pytest.raises(TypeError, match="uint16 or float16"):
        shard_reduce.reduce_cast([shard], other, wire_dtype="fp16")
    with pytest.raises(ValueError, match="residual has 3"):
        shard_reduce.reduce_cast([shard], wire, wire_dtype="fp16", residual=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="momentum_buffer"):
        shard_reduce.reduce_sgd([shard], other, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="overlap"):
        shard_reduce.reduce_sgd([shard], shard, lr=0.1)
    with pytest.raises(ValueError, match="overlap"):
        shard_reduce.reduce_adamw([shard], other, other, np.zeros(4, np.float32), step=1)
    with pytest.raises(ValueError, match="step must be at least 1, not 0"):
        shard_reduce.reduce_adamw(
            [shard], other, np.zeros(4, np.float32), np.zeros(4, np.float32), step=0
        )


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999)])
def test_reduce_adamw_refuses_other_than_two_betas(shard_reduce, betas):
    state = np.zeros((4, 5), np.float32)

    with pytest.raises(ValueError, match="two numbers"):
        shard_reduce.reduce_adamw([state[0]], state[1], state[2], state[3], step=1, betas=betas)
