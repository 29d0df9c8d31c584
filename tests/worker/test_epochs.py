"""Batches that change from epoch to epoch, and models that grow, against a plain loop over them."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.errors import TaskError
from smlt.messages.job import Origin
from smlt.worker.epochs import batch_sizes, batches_of, growth
from smlt.worker.sample_order import SampleOrder
from smlt.worker.schedule import Schedule


def walked(samples, sizes, evaluates, epochs, steps, origin):
    """Every numbered step as a training script would come to it: (epoch, rows or None)."""
    done, trained, epoch = [], origin.trained, origin.epoch
    while (epochs is None or epoch < epochs) and (steps is None or trained < steps):
        left = samples
        while left > 0 and (steps is None or trained < steps):
            done.append((epoch, min(sizes[epoch], left)))
            left -= sizes[epoch]
            trained += 1
        if evaluates:
            done.append((epoch, None))
        epoch += 1
    return done


@given(
    samples=st.integers(1, 60),
    sizes=st.lists(st.integers(2, 40), min_size=8, max_size=8),
    differ=st.booleans(),
    evaluates=st.booleans(),
    epochs=st.integers(2, 8),
    steps=st.none() | st.integers(3, 60),
    grows_at=st.sets(st.integers(1, 8)),
    origin=st.sampled_from([Origin(), Origin(step=11, epoch=1, trained=9)]),
)
def test_every_step_has_its_epochs_batch(
    samples, sizes, differ, evaluates, epochs, steps, grows_at, origin
):
    steps = None if steps is None else steps + origin.trained
    order = SampleOrder(samples, sizes.__getitem__ if differ else sizes[0], 2, seed=3)
    sizes = sizes if differ else sizes[:1] * 8
    schedule = Schedule(
        order.epoch_steps,
        evaluates=evaluates,
        epochs=epochs,
        steps=steps,
        grows_at=grows_at,
        origin=origin,
    )
    expected = walked(samples, sizes, evaluates, epochs, steps, origin)
    assert schedule.total == origin.step + len(expected)
    seen, trained, batches = {}, origin.trained, []
    for number, (epoch, size) in enumerate(expected, origin.step):
        slot = schedule.at(number)
        assert (slot.epoch, slot.evaluation, slot.trained) == (epoch, size is None, trained)
        assert schedule.grows_before(number) == (epoch in grows_at and epoch not in seen)
        rows = seen.setdefault(epoch, [])
        if size is not None:
            batch = order.batch(epoch, slot.batch, range(2))
            assert len(batch) == size == order.count(epoch, slot.batch, range(2))
            rows.extend(batch.tolist())
            batches.append(sizes[epoch])
            trained += 1
    assert schedule.training_steps == trained
    assert schedule.at(schedule.total).trained == trained
    assert not schedule.grows_before(schedule.total)
    for rows in seen.values():
        assert len(set(rows)) == len(rows)
    assert [size for count, size in batches_of(schedule, order) for _ in range(count)] == batches


def test_the_epoch_after_the_last_is_never_asked_for():
    schedule = Schedule([3, 2].__getitem__, evaluates=True, epochs=2, steps=None, grows_at=[2])
    assert [schedule.at(step).trained for step in range(8)] == [0, 1, 2, 3, 3, 4, 5, 5]
    assert schedule.is_over(7)
    assert not schedule.grows_before(7)


def task(**said):
    return SimpleNamespace(**{"batch_size": lambda epoch: None, "grow_at": ()} | said)


def test_a_task_that_says_nothing_has_the_jobs_batch():
    sizes = batch_sizes(task(batch_size=lambda epoch: 64 if epoch else None), 32, 16)
    assert [sizes(epoch) for epoch in (0, 1, 2)] == [32, 64, 64]


@pytest.mark.parametrize("returned", [8, 0, -16, 64.0, True, "64", np.float32(64)])
def test_a_batch_that_cannot_be_is_refused_with_its_epoch(returned):
    sizes = batch_sizes(task(batch_size=lambda epoch: returned), 32, 16)
    with pytest.raises(TaskError, match=r"batch_size\(3\) is .*: return a whole number of at l"):
        sizes(3)


def test_a_batch_size_that_is_no_method_is_named():
    with pytest.raises(TaskError, match=r"batch_size is 32: write it as a method"):
        batch_sizes(task(batch_size=32), 32, 16)


@pytest.mark.parametrize("given_", [3, [0], [-1], [1.5], ["2"], [True], None])
def test_growth_at_no_epoch_is_refused(given_):
    with pytest.raises(TaskError, match="grow_at is"):
        growth(task(grow_at=given_))
    assert growth(task(grow_at={4, 2})) == (2, 4)
