"""Numbered steps against a loop that counts them one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.worker.schedule import Schedule


def counted(per_epoch, evaluates, epochs, steps, limit=500):
    """Walk through a job as a training script would, and list what it does."""
    done, trained, epoch = [], 0, 0
    while epochs is None or epoch < epochs:
        for batch in range(per_epoch):
            if steps is not None and trained == steps:
                break
            done.append((epoch, batch, False, trained))
            trained += 1
        if evaluates:
            done.append((epoch, None, True, trained))
        if (steps is not None and trained == steps) or len(done) > limit:
            break
        epoch += 1
    return done[:limit]


@given(
    per_epoch=st.integers(1, 12),
    evaluates=st.booleans(),
    epochs=st.none() | st.integers(1, 6),
    steps=st.none() | st.integers(1, 60),
)
def test_schedule_is_the_loop_of_a_training_script(per_epoch, evaluates, epochs, steps):
    schedule = Schedule(lambda _: per_epoch, evaluates=evaluates, epochs=epochs, steps=steps)
    expected = counted(per_epoch, evaluates, epochs, steps)
    for number, (epoch, batch, evaluation, trained) in enumerate(expected):
        slot = schedule.at(number)
        assert (slot.epoch, slot.evaluation, slot.trained) == (epoch, evaluation, trained)
        if not evaluation:
            assert slot.batch == batch
    if schedule.total is not None:
        assert schedule.total == len(expected)
        assert schedule.is_last(schedule.total - 1)
        assert not schedule.is_last(schedule.total - 2)
        assert schedule.training_steps == sum(not evaluation for _, _, evaluation, _ in expected)


def test_job_without_bound_has_no_end():
    schedule = Schedule(lambda _: 3, evaluates=True, epochs=None, steps=None)
    assert schedule.total is None
    assert not schedule.is_last(10**9)


@pytest.mark.parametrize("steps", [3, 4, 6, 7, 8])
def test_job_made_longer_leaves_out_no_batch_and_takes_none_twice(steps):
    shape = {"steps_in": lambda _: 4, "evaluates": True, "epochs": None}
    short, long = Schedule(**shape, steps=steps), Schedule(**shape, steps=20)
    ended = short.total
    begins = long.step_after(ended, short.at(ended).trained)
    slots = [short.at(step) for step in range(ended)]
    slots += [long.at(step) for step in range(begins, long.total)]
    taken = [(slot.epoch, slot.batch) for slot in slots if not slot.evaluation]
    assert taken == [divmod(number, 4) for number in range(20)]
