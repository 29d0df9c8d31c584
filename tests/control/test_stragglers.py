"""Who is named a straggler, and when another environment for it is expected to pay."""

import random

import pytest

from smlt.control.stragglers import STEPS, Stragglers


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watched(clock):
    """Stragglers of a job whose start took five seconds."""
    stragglers = Stragglers(clock)
    stragglers.begin()
    clock.now += 5.0
    return stragglers


def feed(stragglers, seconds, steps=STEPS, first=1):
    """Tell of steps in which the ranks were busy for so long."""
    for step in range(first, first + steps):
        for rank, busy_s in enumerate(seconds):
            stragglers.take(rank, step, busy_s, len(seconds))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.2, 0.2, 0.7, 0.2], [(2, 3.5)]),
        ([0.2, 0.6], [(1, 3.0)]),  # of two, one is compared with the other
        ([0.5, 0.2, 0.2, 0.5, 0.2], [(0, 2.5), (3, 2.5)]),
        ([0.2, 0.29, 0.2], []),  # less than one and a half times
        ([0.001, 0.009, 0.001], []),  # nine times nothing
        ([0.3], []),  # there is nobody to wait for it
        ([0.2, 0.2, 0.2], []),
    ],
)
def test_slow_ranks_are_named_with_their_multiple_of_the_others_median(watched, seconds, expected):
    feed(watched, seconds)
    assert [(one.rank, pytest.approx(one.times)) for one in watched.found()] == expected


def test_several_steps_in_a_row_make_a_straggler_and_one_good_step_clears_it(watched):
    feed(watched, [0.2, 0.7, 0.2], steps=STEPS - 1)
    assert watched.found() == []
    feed(watched, [0.2, 0.7, 0.2], steps=1, first=STEPS)
    assert [one.rank for one in watched.found()] == [1]
    feed(watched, [0.2, 0.25, 0.2], steps=1, first=STEPS + 1)
    assert watched.found() == []


def test_whoever_is_slow_by_turns_is_no_straggler(watched):
    rng = random.Random(1)
    for step in range(200):
        seconds = [0.2] * 4
        seconds[rng.randrange(4)] = 2.0
        feed(watched, seconds, steps=1, first=step)
        # Once in 4 ** 8 it is the same one each time.
        assert watched.found() == []


def test_steps_that_not_all_have_told_of_are_waited_for(watched):
    for step in range(STEPS):
        watched.take(0, step, 0.2, 2)
    assert watched.found() == []
    for step in range(STEPS):
        watched.take(1, step, 0.6, 2)
    assert [one.rank for one in watched.found()] == [1]


def test_it_pays_when_what_is_gained_is_twice_what_a_start_takes(watched):
    feed(watched, [0.2, 0.7, 0.2])
    # Half a second a step, against five seconds for the start: twenty steps give twice as much.
    assert watched.worth_replacing(20) == []
    assert [one.rank for one in watched.worth_replacing(21)] == [1]


def test_nothing_is_gained_by_one_of_two_that_stays(watched):
    feed(watched, [0.2, 0.7, 0.7, 0.2, 0.2])
    assert [one.rank for one in watched.worth_replacing(21)] == [1, 2]
    watched.replaced([1])
    watched.begin()
    feed(watched, [0.2, 0.7, 0.7, 0.2, 0.2])
    assert [one.rank for one in watched.found()] == [1, 2]
    assert watched.worth_replacing(1000) == []


def test_rank_that_stays_slow_is_replaced_once(watched):
    feed(watched, [0.2, 0.7, 0.2])
    watched.replaced([1])
    watched.begin()
    assert watched.found() == []
    feed(watched, [0.2, 0.7, 0.2])
    assert [one.rank for one in watched.found()] == [1]
    assert watched.worth_replacing(1000) == []


def test_it_is_said_in_words(watched):
    feed(watched, [0.2, 0.7, 0.2])
    [slow] = watched.found()
    assert str(slow) == "rank 1 takes 3.5 × the others' 0.2 s a step"
