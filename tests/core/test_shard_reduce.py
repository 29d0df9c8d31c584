import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt import _core
from tests.core.oracles import (
    bf16_bits,
    expected,
    from_bf16,
    left_fold,
    normal_shards,
    same_bits,
)

COUNTS = (0, 1, 7, 8, 31, 33, 1000, 65_537)
WORLDS = (1, 2, 3, 5, 7, 8, 9, 16, 17, 24, 33, 100)
ORDERS = ("fold", "tree", "fp64")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_reduce_gives_the_bits_of_the_documented_order(shard_reduce, rng, world_size, order):
    for count in COUNTS:
        shards = normal_shards(rng, world_size, count)
        weights = rng.random(world_size)
        out = np.empty(count, np.float32)

        shard_reduce.reduce(shards, out, order=order)
        assert same_bits(out, expected(shards, order))

        shard_reduce.reduce(shards, out, order=order, weights=weights, scale=1 / 3)
        assert same_bits(out, expected(shards, order, weights, 1 / 3))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("world_size", [1, 3, 8, 9, 33])
def test_reduce_halves_equals_reduce_of_widened_halves(shard_reduce, rng, world_size, order):
    shards = normal_shards(rng, world_size, 10_007)
    halves = [shard.astype(np.float16) for shard in shards]
    brains = [bf16_bits(shard) for shard in shards]
    out = np.empty(10_007, np.float32)

    shard_reduce.reduce(halves, out, order=order)
    assert same_bits(out, expected([half.astype(np.float32) for half in halves], order))

    shard_reduce.reduce(brains, out, dtype="bf16", order=order, scale=0.1)
    assert same_bits(out, expected([from_bf16(bits) for bits in brains], order, None, 0.1))


def test_every_half_widens_as_numpy_widens_it(shard_reduce):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    out = np.empty(1 << 16, np.float32)

    shard_reduce.reduce([halves], out)

    assert np.array_equal(out, halves.astype(np.float32), equal_nan=True)
    signed = ~np.isnan(halves)
    assert np.array_equal(np.signbit(out[signed]), np.signbit(halves[signed]))


def test_tree_of_subtrees_is_the_whole_tree(shard_reduce, rng):
    """What lets `exact` give the same bits for any power of two of ranks."""
    shards = normal_shards(rng, 16, 1000)
    whole, part = np.empty(1000, np.float32), np.empty((8, 1000), np.float32)
    shard_reduce.reduce(shards, whole)
    for ranks in (1, 2, 4, 8):
        each = 16 // ranks
        for rank in range(ranks):
            shard_reduce.reduce(shards[rank * each : (rank + 1) * each], part[rank])
        out = np.empty(1000, np.float32)
        shard_reduce.reduce(list(part[:ranks]), out)
        assert same_bits(out, whole)


def test_tree_error_grows_slower_than_fold_error(shard_reduce, rng):
    shards = normal_shards(rng, 1000, 2048)
    exact = left_fold([shard.astype(np.float64) for shard in shards])
    error = {}
    for order in ORDERS:
        out = np.empty(2048, np.float32)
        shard_reduce.reduce(shards, out, order=order)
        error[order] = np.sqrt(np.mean((out - exact) ** 2) / np.mean(exact**2))

    assert error["fp64"] < 5e-8
    assert error["tree"] < 2e-7 < error["fold"]


def test_reduce_reads_unaligned_readonly_bytes(shard_reduce, rng):
    shards = normal_shards(rng, 9, 5003)
    received = b"x" + b"".join(shard.tobytes() for shard in shards)
    slices = [memoryview(received)[1 + i * 20_012 :][:20_012] for i in range(9)]
    out = np.empty(5003, np.float32)

    shard_reduce.reduce(slices, out)

    assert same_bits(out, expected(shards, "tree"))


def test_reduce_writes_to_unaligned_memory(shard_reduce, rng):
    shards = normal_shards(rng, 3, 101)
    room = np.zeros(405, np.uint8)
    out = np.frombuffer(room[1:], np.float32)

    shard_reduce.reduce(shards, out)

    assert same_bits(out.copy(), expected(shards, "tree"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", [0, 7, 8, 19])
def test_reduce_into_one_of_its_shards_is_exact(shard_reduce, rng, order, index):
    shards = normal_shards(rng, 20, 50_001)
    want = expected(shards, order, None, 0.05)

    shard_reduce.reduce(shards, shards[index], order=order, scale=0.05)

    assert same_bits(shards[index], want)


def test_special_values_go_through(shard_reduce):
    special = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38], np.float32)
    out = np.empty(8, np.float32)

    for order in ("fold", "tree"):
        shard_reduce.reduce([special, special], out, order=order, scale=0.5)
        with np.errstate(over="ignore"):
            want = (special + special) * np.float32(0.5)
        assert same_bits(np.nan_to_num(out, nan=1.0), np.nan_to_num(want, nan=1.0))
        assert np.isnan(out[4])
        assert np.signbit(out[0])


@pytest.mark.parametrize("count", [0, 5, 16, 100_003])
def test_norm_is_the_squared_norm_of_out(shard_reduce, rng, count):
    shards = normal_shards(rng, 9, count)
    out = np.empty(count, np.float32)

    norm = shard_reduce.reduce(shards, out, scale=0.1, norm=True)

    assert norm == pytest.approx(float(np.sum(out.astype(np.float64) ** 2)), rel=1e-12)
    assert shard_reduce.reduce(shards, out) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 15, 16, 40_000])
def test_norm_tells_of_any_value_that_is_not_finite(shard_reduce, bad, at):
    shard = np.full(40_001, 3e38, np.float32)
    out = np.empty_like(shard)
    assert np.isfinite(shard_reduce.reduce([shard], out, norm=True))

    shard[at] = bad

    assert not np.isfinite(shard_reduce.reduce([shard], out, norm=True))


def test_threads_do_not_change_the_bits(shard_reduce, rng):
    shards = normal_shards(rng, 12, 300_007)
    one, many = np.empty((2, 300_007), np.float32)

    norm = shard_reduce.reduce(shards, one, norm=True)
    again = shard_reduce.reduce(shards, many, threads=5, norm=True)

    assert same_bits(one, many)
    assert norm == again


def test_instruction_sets_give_the_same_bits(rng):
    if not _core.COMPILED or _core.shard_reduce.instruction_set() != "avx2":
        pytest.skip("only one instruction set here")
    bits = rng.integers(0, 1 << 16, (9, 70_001)).astype(np.uint16)
    shards = normal_shards(rng, 9, 70_001)
    results = []
    for name in ("avx2", "baseline"):
        _core.shard_reduce.use_instruction_set(name)
        out = np.empty(70_001, np.float32)
        for dtype in ("fp16", "bf16"):
            _core.shard_reduce.reduce(bits[:1], out, dtype=dtype)
            results.append(out.tobytes())
        results.append(_core.shard_reduce.reduce(shards, out, norm=True))
        results.append(out.tobytes())
    _core.shard_reduce.use_instruction_set("avx2")

    assert results[:4] == results[4:]


@settings(max_examples=60, deadline=None)
@given(
    world_size=st.integers(1, 40),
    count=st.integers(0, 300),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 1 << 32),
)
def test_reduce_agrees_with_the_twin(world_size, count, order, seed):
    rng = np.random.default_rng(seed)
    spread = (10.0 ** rng.integers(-30, 30, world_size)).astype(np.float32)
    shards = [f * s for f, s in zip(spread, normal_shards(rng, world_size, count), strict=True)]
    a, b = np.empty((2, count), np.float32)

    _core.shard_reduce.reduce(shards, a, order=order, scale=0.3)
    from smlt._core._reference import shard_reduce as twin

    twin.reduce(shards, b, order=order, scale=0.3)

    assert same_bits(a, b)


# ---- refusals ----


def one(count=4, dtype=np.float32):
    return np.ones(count, dtype)


@pytest.mark.parametrize(
    ("shards", "out", "options", "error", "text"),
    [
        ([], one(), {}, ValueError, "no shard"),
        ([one(), one(5)], one(), {}, ValueError, "shard 1 has 20 bytes"),
        ([one(4, np.float64)], one(), {}, TypeError, "format 'd'"),
        ([one(4, np.int32)], one(), {}, TypeError, "format 'i'"),
        ([one(4, ">f4")], one(), {}, TypeError, "format"),
        ([one(4, np.uint16)], one(), {}, TypeError, "dtype="),
        ([b"12345678"], one(), {}, TypeError, "dtype="),
        ([one(4, np.float16)], one(), {"dtype": "bf16"}, TypeError, "bf16 was expected"),
        ([one()], one(), {"dtype": "fp8"}, ValueError, "dtype must be one of"),
        ([one()], one(), {"order": "random"}, ValueError, "order must be one of"),
        ([one()], one(), {"weights": [1, 2]}, ValueError, "2 weights for 1 shards"),
        ([one()], one(), {"threads": 0}, ValueError, "threads must be"),
        ([one()], one(4, np.float64), {}, TypeError, "out must be float32"),
        ([one()], bytes(16), {}, BufferError, "out must be writable"),
        ([one(8)[::2]], one(), {}, BufferError, "C-contiguous"),
        ([one()], one(8)[::2], {}, BufferError, "C-contiguous"),
        ([[1.0, 2.0]], one(), {}, TypeError, "is a list"),
        ([None], one(), {}, TypeError, "NoneType"),
    ],
)
def test_reduce_refuses(shard_reduce, shards, out, options, error, text):
    with pytest.raises(error, match=text):
        shard_reduce.reduce(shards, out, **options)


def test_reduce_refuses_partial_overlap(shard_reduce):
    room = np.ones(12, np.float32)

    with pytest.raises(ValueError, match="overlap"):
        shard_reduce.reduce([room[:8]], room[2:10])
