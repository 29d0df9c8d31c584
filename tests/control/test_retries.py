"""How often a job tries again, and after how long."""

import pytest

from smlt.control.retries import Retries
from smlt.messages.job import Position
from smlt.messages.worker import Failure


def lost(rank, message="rank {} has not been heard of for 10 s"):
    return Failure(kind="lost", message=message.format(rank), rank=rank)


def at(step):
    return Position(generation=1, step=step)


def test_the_same_failure_three_times_ends_the_job_whichever_rank_meets_it():
    retries = Retries()
    assert [retries.end(lost(rank), at(5)) for rank in (0, 3)] == ["", ""]
    assert retries.end(lost(1), at(5)) == "rank 1 has not been heard of for 10 s (3 times)"


def test_a_newer_state_makes_the_same_failure_another_one():
    retries = Retries()
    assert [retries.end(lost(0), at(step)) for step in range(50)] == [""] * 50
    assert retries.delay_s == 0.5


def test_a_rank_that_fails_in_other_words_each_time_has_a_limit_of_its_own():
    retries = Retries()
    words = [lost(2, f"rank {{}} ended before its time: its last line: {n}") for n in range(5)]
    assert [retries.end(failure, at(5)) for failure in words[:4]] == [""] * 4
    assert retries.end(words[4], at(5)).endswith("(rank 2 failed 5 times)")


def test_generations_that_get_nowhere_have_a_limit_whatever_goes_wrong():
    retries = Retries()
    failures = [Failure(kind="store", message=f"trouble {n}") for n in range(10)]
    assert [retries.end(failure, None) for failure in failures[:9]] == [""] * 9
    assert retries.end(failures[9], None) == "trouble 9 (10 generations without a step)"


def test_each_failure_doubles_the_wait_up_to_half_a_minute_and_progress_makes_it_short_again():
    retries = Retries()
    waits = []
    for number in range(9):
        retries.end(Failure(kind="store", message=f"trouble {number}"), at(5))
        waits.append(retries.delay_s)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    retries.end(Failure(kind="store", message="trouble"), at(6))
    assert retries.delay_s == 0.5


@pytest.mark.parametrize("kind", ["numbers", "diverged", "memory", "user", "unreachable"])
def test_what_comes_again_for_certain_is_not_tried_again(kind):
    failure = Failure(kind=kind, message="no use")
    assert Retries().end(failure, at(5)) == "no use"
