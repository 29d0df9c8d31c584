"""A task that fails in a worker: the sentence names rank and step, and its traceback is shown."""

from __future__ import annotations

import pytest

from jobs.harness import TASKS

SMALL_FILE = TASKS / "small.py"


def failed(place, name, *arguments, workers=2):
    options = ("--workers", str(workers), "--steps", "10", *arguments)
    return place.start(f"{SMALL_FILE}:{name}", *options)


def test_exception_at_step_7_on_one_rank(place):
    ended = failed(place, "RaisesAtStep7").end().check(1)
    assert "rank 1 failed at step 7: ValueError: the seventh batch is spoilt" in ended.sentence
    assert "small.py:" in ended.sentence
    assert "from rank 1's log:" in ended.err
    assert "    Traceback (most recent call last):" in ended.err
    assert 'raise ValueError("the seventh batch is spoilt")' in ended.err


def test_exception_keeps_the_checkpoint_of_the_steps_before(place):
    ended = failed(place, "RaisesAtStep7", "--json").end().check(1)
    assert ended.summary["state"] == "failed"
    assert ended.summary["steps"] == 6
    assert ended.summary["checkpoint"]
    assert ended.summary["traceback"].startswith("Traceback")


def test_exception_in_initialize(place):
    ended = failed(place, "RaisesInInitialize").end().check(1)
    assert "RuntimeError: no weights today" in ended.sentence
    assert "before its first step" in ended.sentence
    assert "in initialize" in ended.err


def test_loss_that_is_no_number_is_not_tried_again(place):
    job = failed(place, "Diverges")
    ended = job.end().check(1)
    assert "rank 1: the loss at step 5 is nan" in ended.sentence
    assert "smaller learning rate" in ended.sentence
    assert len(job.events("generation")) == 1


def test_too_little_memory_names_a_size_and_is_not_tried_again(place):
    job = failed(place, "Hungry", "--memory-mb", "256")
    ended = job.end().check(1)
    assert "rank 1 ran out of its 256 MB of memory" in ended.sentence
    assert "--memory-mb 512" in ended.sentence
    assert len(job.events("generation")) == 1


def test_task_that_exits(place):
    ended = failed(place, "Exits").end().check(1)
    assert "rank 1 failed at step 3: SystemExit: 3" in ended.sentence


@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        ("RunsOut", "RuntimeError: StopIteration", "next(iter([]))"),
        ("TimesOut", "TimeoutError: no answer", 'raise TimeoutError("no answer")'),
    ],
)
def test_exception_that_asyncio_does_not_carry_is_a_failure_as_any_other(place, name, said, line):
    ended = failed(place, name, workers=1).end().check(1)
    assert f"rank 0 failed at step 3: {said} (small.py:" in ended.sentence
    assert line in ended.err
