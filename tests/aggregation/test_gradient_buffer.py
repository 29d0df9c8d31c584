"""A shard is announced once, when every tensor in it is final; presence survives the trip."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.aggregation.shard_plan import plan_shards

shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=12).map(
    lambda shapes: {f"tensor{i}": shape for i, shape in enumerate(shapes)}
)


def partitioned(shapes):
    buffer = GradientBuffer(shapes)
    plan = plan_shards(buffer.flat.size, world_size=3, shard_bytes=64)
    buffer.partition(plan)
    return buffer, plan


def spans(shapes):
    """Where each tensor lies."""
    start = 0
    for name, shape in shapes.items():
        yield name, range(start, start + prod(shape))
        start += prod(shape)


def tensors_in(shapes, plan, shard):
    bounds = plan.span(shard)
    return {
        name
        for name, span in spans(shapes)
        if len(span) and span.start < bounds.stop and span.stop > bounds.start
    }


@given(shapes)
def test_views_lie_in_the_flat_buffer_in_order(shapes):
    buffer = GradientBuffer(shapes)
    buffer.flat[:] = np.arange(buffer.flat.size)
    assert buffer.flat.dtype == np.float32
    assert not buffer.flat.size or buffer.flat.ctypes.data % 64 == 0
    for name, span in spans(shapes):
        assert buffer.views[name].shape == shapes[name]
        assert buffer.views[name].reshape(-1).tolist() == list(span)
        assert not buffer.views[name].size or np.shares_memory(buffer.views[name], buffer.flat)


@given(shapes, st.randoms(use_true_random=False))
def test_a_shard_is_announced_when_its_last_tensor_is_ready(shapes, random):
    buffer, plan = partitioned(shapes)
    needed = [tensors_in(shapes, plan, shard) for shard in range(plan.shards)]
    names = list(shapes)
    random.shuffle(names)
    for _ in range(2):
        buffer.begin()
        announced, done = [], set()
        for name in names:
            done.add(name)
            expected = {s for s, tensors in enumerate(needed) if tensors and tensors <= done}
            buffer.ready(name, announced.append)
            buffer.ready(name, announced.append)
            assert sorted(announced) == sorted(expected)
        buffer.finish(announced.append)
        assert sorted(announced) == list(range(plan.shards))


@given(shapes, st.data())
def test_finish_announces_what_was_never_reported(shapes, data):
    buffer, plan = partitioned(shapes)
    buffer.begin()
    announced = []
    for name in data.draw(st.lists(st.sampled_from(list(shapes) or ["none"]), unique=True)):
        if name in shapes:
            buffer.ready(name, announced.append)
    buffer.finish(announced.append)
    assert sorted(announced) == list(range(plan.shards))


@given(shapes, st.data())
def test_presence_on_any_rank_is_presence(shapes, data):
    buffer, plan = partitioned(shapes)
    some = st.frozensets(st.sampled_from(list(shapes))) if shapes else st.just(frozenset())
    absent = data.draw(st.lists(some, min_size=1, max_size=4))
    merged = [
        np.bitwise_or.reduce(
            [np.frombuffer(buffer.presence(shard, own), np.uint8) for own in absent]
        ).tobytes()
        for shard in range(plan.shards)
    ]
    with_elements = {name for name, span in spans(shapes) if len(span)}
    expected = with_elements - frozenset.intersection(*absent)
    assert buffer.present(merged) == expected


def test_begin_zeroes_the_gradient():
    buffer, _ = partitioned({"weight": (5, 5)})
    buffer.flat.fill(7)
    buffer.begin()
    assert not buffer.flat.any()
