"""When a job has reached its aim."""

import pytest

from smlt.errors import TaskError
from smlt.messages.job import JobSpec
from smlt.worker.target import Target


def target(**settings):
    return Target.of(JobSpec(target="t.py:T", **settings))


def observe(aim, *values, name="accuracy"):
    return [aim.observe({name: value}) for value in values]


def test_until_ends_at_the_first_evaluation_that_satisfies_it():
    aim = target(until="accuracy>=0.9")
    observe(aim, 0.8, 0.89)
    assert not aim.reached
    observe(aim, 0.9)
    assert aim.reached


def test_target_once_reached_stays_reached():
    aim = target(until="accuracy>=0.9")
    observe(aim, 0.95, 0.1)
    assert aim.reached


def test_target_that_was_given_up_is_not_reached():
    aim = target(until="accuracy>=0.9")
    observe(aim, 0.95)
    longer = target()
    longer.load(aim.scalars())
    assert not longer.reached


def test_keep_best_says_which_evaluation_is_the_best_so_far():
    assert observe(target(keep_best="accuracy"), 0.5, 0.7, 0.6, 0.7, 0.8) == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_lower_is_better_for_a_loss():
    assert observe(target(keep_best="loss"), 0.5, 0.7, 0.4, name="loss") == [True, False, True]


def test_nan_is_never_the_best():
    assert observe(target(keep_best="accuracy"), float("nan"), 0.1) == [False, True]


def test_patience_counts_evaluations_without_a_better_one():
    aim = target(keep_best="accuracy", patience=2)
    observe(aim, 0.5, 0.4, 0.6, 0.6)
    assert not aim.reached
    observe(aim, 0.1)
    assert aim.reached


def test_patience_watches_the_metric_of_until():
    aim = target(until="loss<0.1", patience=1)
    observe(aim, 0.5, 0.6, name="loss")
    assert aim.reached


def test_what_is_remembered_survives_a_restart():
    before = target(keep_best="accuracy", patience=2)
    observe(before, 0.5, 0.4)
    after = target(keep_best="accuracy", patience=2)
    after.load(before.scalars())
    observe(after, 0.3)
    assert after.reached


def test_metric_that_is_not_evaluated_is_named_with_those_that_are():
    with pytest.raises(TaskError, match="'f1', but evaluate\\(\\) returns accuracy"):
        observe(target(until="f1>0.5"), 0.5)
