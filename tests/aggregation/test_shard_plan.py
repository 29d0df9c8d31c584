"""Every element in one shard, every shard with one owner, all owners equally busy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.aggregation.shard_plan import ALIGNMENT, plan_shards

plans = st.builds(
    plan_shards,
    st.integers(0, 1 << 24),
    world_size=st.integers(1, 64),
    shard_bytes=st.integers(64, 1 << 24),
    aggregators=st.none() | st.integers(1, 80),
)


@given(
    elements=st.integers(0, 5000),
    world_size=st.integers(1, 20),
    shard_bytes=st.integers(64, 4096),
    aggregators=st.none() | st.integers(1, 25),
)
def test_shards_cover_every_element_once(elements, world_size, shard_bytes, aggregators):
    plan = plan_shards(
        elements, world_size=world_size, shard_bytes=shard_bytes, aggregators=aggregators
    )

    covered = [index for shard in range(plan.shards) for index in range(elements)[plan.span(shard)]]

    assert covered == list(range(elements))


@given(plans)
def test_shards_are_equal_but_for_the_last(plan):
    spans = [plan.span(shard) for shard in (0, plan.shards // 2, plan.shards - 1)]
    sizes = [span.stop - span.start for span in spans]
    assert sizes[0] == max(sizes)
    if plan.shards > 1:
        assert sizes[0] == plan.shard_elements
        assert sizes[-1] > 0


@given(plans)
def test_shards_begin_on_cache_lines(plan):
    assert plan.shard_elements % ALIGNMENT == 0
    assert all(4 * plan.span(shard).start % 64 == 0 for shard in range(min(plan.shards, 100)))


@given(
    elements=st.integers(0, 1 << 24),
    world_size=st.integers(1, 64),
    shard_bytes=st.integers(64, 1 << 24),
)
def test_no_shard_is_larger_than_asked(elements, world_size, shard_bytes):
    plan = plan_shards(elements, world_size=world_size, shard_bytes=shard_bytes)
    assert 4 * plan.shard_elements <= shard_bytes


@given(plans)
def test_no_owner_has_more_than_one_shard_above_another(plan):
    owned = [0] * len(plan.owners)
    for index in range(len(plan.owners)):
        owned[index] = len(range(index, plan.shards, len(plan.owners)))
    assert sum(owned) == plan.shards
    assert max(owned) - min(owned) <= 1


@given(
    elements=st.integers(0, 3000),
    world_size=st.integers(1, 16),
    aggregators=st.none() | st.integers(1, 20),
)
def test_every_shard_is_owned_by_one_of_m_ranks(elements, world_size, aggregators):
    plan = plan_shards(elements, world_size=world_size, shard_bytes=256, aggregators=aggregators)
    owned = [plan.owned(rank) for rank in range(world_size)]

    assert sorted(shard for shards in owned for shard in shards) == list(range(plan.shards))
    assert sum(map(bool, owned)) <= min(aggregators or world_size, world_size)
    for rank, shards in enumerate(owned):
        assert all(plan.owner(shard) == rank for shard in shards)


@given(world_size=st.integers(1, 64), aggregators=st.integers(1, 64))
def test_a_large_gradient_keeps_every_owner_busy_alike(world_size, aggregators):
    plan = plan_shards(
        10_000_000, world_size=world_size, shard_bytes=4 << 20, aggregators=aggregators
    )
    busy = [
        sum(plan.span(shard).stop - plan.span(shard).start for shard in plan.owned(rank))
        for rank in plan.owners
    ]
    assert len(set(plan.owners)) == min(aggregators, world_size)
    assert max(busy) <= 1.05 * sum(busy) / len(busy)


@given(elements=st.integers(0, 1 << 20), world_size=st.integers(1, 64))
def test_nobody_owns_crumbs_unless_asked_to(elements, world_size):
    plan = plan_shards(elements, world_size=world_size, shard_bytes=4 << 20)
    assert plan.shards == 1 or 4 * plan.shard_elements >= 64 << 10
    if 4 * elements >= world_size * (64 << 10):
        assert len(plan.owners) == world_size
    asked = plan_shards(elements, world_size=world_size, shard_bytes=4 << 20, aggregators=99)
    assert len(asked.owners) == world_size


@pytest.mark.parametrize(
    "wrong",
    [{"world_size": 0}, {"aggregators": 0}, {"elements": -1}, {"shard_bytes": 63}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_counts_out_of_range_are_refused(wrong):
    counts = {"elements": 100, "world_size": 4, "shard_bytes": 1024} | wrong
    with pytest.raises(ValueError, match="no plan for"):
        plan_shards(counts.pop("elements"), **counts)
