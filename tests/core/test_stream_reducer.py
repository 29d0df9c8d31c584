import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt import _core
from tests.core.oracles import bf16_bits, expected, normal_shards, same_bits

ORDERS = ("fold", "tree", "fp64")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_arrival_order_gives_the_bits_of_the_batch(data):
    order = data.draw(st.sampled_from(ORDERS))
    world_size = data.draw(st.integers(1, 70))
    arrival = data.draw(st.permutations(range(world_size)))
    weighted = data.draw(st.booleans())
    rng = np.random.default_rng(world_size)
    shards = normal_shards(rng, world_size, 37)
    weights = rng.random(world_size).tolist() if weighted else None
    batch, streamed = np.empty((2, 37), np.float32)
    _core.shard_reduce.reduce(shards, batch, order=order, weights=weights, scale=0.7)

    stream = _core.shard_reduce.StreamReducer(37, world_size, order=order, weights=weights)
    for index in arrival:
        stream.add(index, shards[index])
    stream.finish(streamed, 0.7)

    assert same_bits(streamed, batch)


@pytest.mark.parametrize("order", ORDERS)
def test_reducer_is_ready_again_after_finish(shard_reduce, rng, order):
    stream = shard_reduce.StreamReducer(5000, 21, order=order, threads=2)
    for _ in range(3):
        shards = normal_shards(rng, 21, 5000)
        for index in rng.permutation(21):
            stream.add(int(index), shards[index])
        out = np.empty(5000, np.float32)
        stream.finish(out)
        assert same_bits(out, expected(shards, order))


def test_reducer_takes_halves(shard_reduce, rng):
    shards = [bf16_bits(shard) for shard in normal_shards(rng, 10, 77)]
    stream = shard_reduce.StreamReducer(77, 10, dtype="bf16")
    for index, shard in enumerate(shards):
        stream.add(index, shard.tobytes())
    out, batch = np.empty((2, 77), np.float32)
    stream.finish(out)

    shard_reduce.reduce(shards, batch, dtype="bf16")
    assert same_bits(out, batch)


@pytest.mark.parametrize("world_size", [8, 32, 100, 1000])
def test_tree_fed_in_order_holds_few_shards(world_size):
    if not _core.COMPILED:
        pytest.skip("the twin keeps everything")
    stream = _core.shard_reduce.StreamReducer(4, world_size)
    shard = np.ones(4, np.float32)
    most = 0
    for index in range(world_size):
        stream.add(index, shard)
        most = max(most, len(stream.held) + stream.partial_count)

    assert most <= math.log2(world_size) + 8


def test_shards_are_free_once_add_has_returned_their_index(rng):
    """A receive window may be overwritten as soon as the reducer says so."""
    if not _core.COMPILED:
        pytest.skip("the twin keeps everything")
    shards = normal_shards(rng, 40, 100)
    want = expected(shards, "tree")
    stream = _core.shard_reduce.StreamReducer(100, 40)
    for index in rng.permutation(40):
        for freed in stream.add(int(index), shards[index]):
            shards[freed].fill(np.nan)
    out = np.empty(100, np.float32)
    stream.finish(out)

    assert same_bits(out, want)


def test_reducer_refuses(shard_reduce):
    shard = np.ones(4, np.float32)
    stream = shard_reduce.StreamReducer(4, 2)
    stream.add(0, shard)

    with pytest.raises(ValueError, match="outside a world of 2"):
        stream.add(2, shard)
    with pytest.raises(ValueError, match="shard 0 has been added already"):
        stream.add(0, shard)
    with pytest.raises(ValueError, match="bytes"):
        stream.add(1, shard[:3])
    assert stream.missing == [1]
    with pytest.raises(ValueError, match="1 of 2 shards are missing"):
        stream.finish(np.empty(4, np.float32))
    stream.add(1, shard)
    with pytest.raises(ValueError, match="not 4"):
        stream.finish(np.empty(5, np.float32))
    with pytest.raises(ValueError, match="world_size"):
        shard_reduce.StreamReducer(4, 0)
    with pytest.raises(ValueError, match="3 weights for 2"):
        shard_reduce.StreamReducer(4, 2, weights=[1, 2, 3])
