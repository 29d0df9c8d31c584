import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt.errors import TaskError
from smlt.worker.sample_order import SampleOrder, evaluation_batches, row_block, virtual_block

orders = st.builds(
    SampleOrder,
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 80),
    virtual_workers=st.sampled_from([1, 2, 4, 8, 16]),
    seed=st.integers(0, 2**62),
)


def of_ranks(order, epoch, index, ranks):
    return [
        order.batch(epoch, index, virtual_block(rank, ranks, order.virtual_workers))
        for rank in range(ranks)
    ]


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 5), st.integers(1, 16))
def test_every_sample_is_visited_once_an_epoch_by_any_number_of_ranks(order, epoch, ranks):
    ranks = min(ranks, order.virtual_workers)
    visited = [
        row
        for index in range(order.steps_in(0))
        for part in of_ranks(order, epoch, index, ranks)
        for row in part
    ]
    assert sorted(visited) == list(range(order.samples))


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 5))
def test_a_batch_is_the_same_for_any_number_of_ranks(order, epoch):
    for index in range(order.steps_in(0)):
        whole = order.batch(epoch, index, range(order.virtual_workers))
        assert len(whole) == order.batch_samples(0, index)
        for ranks in range(1, order.virtual_workers + 1):
            parts = of_ranks(order, epoch, index, ranks)
            assert np.array_equal(np.concatenate(parts), whole)


@settings(max_examples=60, deadline=None)
@given(orders)
def test_only_the_last_batch_is_short_and_shares_differ_by_one(order):
    sizes = [order.batch_samples(0, i) for i in range(order.steps_in(0))]
    assert set(sizes[:-1]) <= {order.batch_size(0)}
    assert 0 < sizes[-1] <= order.batch_size(0)
    assert sum(sizes) == order.samples
    for index in range(order.steps_in(0)):
        shares = [len(order.batch(0, index, range(v, v + 1))) for v in range(order.virtual_workers)]
        assert max(shares) - min(shares) <= 1


def test_a_virtual_worker_keeps_to_its_own_block_of_rows():
    order = SampleOrder(103, 16, 4, seed=1)
    for v in range(4):
        rows = [order.batch(2, i, range(v, v + 1)) for i in range(order.steps_in(0))]
        assert sorted(np.concatenate(rows)) == list(row_block(103, 4, v))


def test_epochs_seeds_and_virtual_workers_differ():
    def first(seed, epoch, v):
        order = SampleOrder(1600, 64, 16, seed)
        return tuple(order.batch(epoch, 0, range(v, v + 1)) - row_block(1600, 16, v).start)

    assert len({first(0, 0, 0), first(1, 0, 0), first(0, 1, 0), first(0, 0, 1)}) == 4


def test_the_order_is_the_same_in_every_version():
    order = SampleOrder(20, 8, 4, seed=42)
    assert order.batch(3, 1, range(4)).tolist() == [0, 2, 8, 6, 12, 13, 18, 17]


def test_an_order_asked_for_out_of_turn_is_the_same():
    straight, jumping = SampleOrder(50, 8, 2, 5), SampleOrder(50, 8, 2, 5)
    wanted = {(e, i): straight.batch(e, i, range(2)) for e in range(4) for i in range(7)}
    for (epoch, index), rows in reversed(wanted.items()):
        assert np.array_equal(jumping.batch(epoch, index, range(2)), rows)


@given(st.integers(1, 64), st.sampled_from([64, 128]))
def test_virtual_workers_are_shared_out_evenly(ranks, virtual_workers):
    blocks = [virtual_block(rank, ranks, virtual_workers) for rank in range(ranks)]
    assert [v for block in blocks for v in block] == list(range(virtual_workers))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 16))
def test_evaluation_goes_through_every_row_once_and_in_order(samples, batch_size, ranks):
    batches = [
        batch
        for rank in range(ranks)
        for batch in evaluation_batches(samples, batch_size, 16, virtual_block(rank, ranks, 16))
    ]
    assert [row for batch in batches for row in batch] == list(range(samples))
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_an_empty_split_is_refused():
    with pytest.raises(TaskError, match="empty"):
        SampleOrder(0, 8, 4, seed=0)
