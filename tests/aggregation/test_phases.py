"""Where a step's time went, by a clock that is set by hand."""

from __future__ import annotations

import pytest

from smlt.aggregation.phases import (
    COMPUTE,
    DL_GRAD,
    DL_SHARD,
    OVERLAP,
    REDUCE,
    UL_SHARD,
    WAIT,
    Phases,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def told(phases):
    return {name: seconds for name, seconds in phases.seconds.items() if seconds}


def test_shards_that_move_at_once_count_once(clock):
    phases = Phases(clock)
    with phases.during(UL_SHARD, 0):
        clock.now += 1
        with phases.during(UL_SHARD, 1), phases.during(DL_GRAD, 2):
            clock.now += 2
        clock.now += 4
    assert told(phases) == {UL_SHARD: 7, DL_GRAD: 2}


def test_overlap_is_what_moves_while_gradients_are_computed(clock):
    phases = Phases(clock)
    with phases.during(UL_SHARD):
        clock.now += 1
        with phases.during(COMPUTE):
            clock.now += 2
            with phases.during(DL_SHARD):
                clock.now += 4
    with phases.during(COMPUTE), phases.during(REDUCE):
        clock.now += 8
    assert told(phases) == {UL_SHARD: 7, DL_SHARD: 4, COMPUTE: 14, REDUCE: 8, OVERLAP: 6}


def test_what_is_nothing_else_is_waiting(clock):
    phases = Phases(clock)
    clock.now += 1
    with phases.during(REDUCE):
        clock.now += 2
    clock.now += 4
    assert phases.stop() == 7
    assert told(phases) == {WAIT: 5, REDUCE: 2}


def test_a_phase_that_fails_has_ended(clock):
    phases = Phases(clock)

    def fail():
        with phases.during(UL_SHARD):
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    clock.now += 2
    phases.stop()
    assert told(phases) == {UL_SHARD: 1, WAIT: 2}


def test_a_trace_tells_which_shard_went_when(clock):
    phases = Phases(clock, trace=True)
    clock.now += 1
    with phases.during(COMPUTE):
        clock.now += 1
        with phases.during(DL_SHARD, 3, 2):
            clock.now += 1
    assert phases.spans == [(DL_SHARD, 3, 2, 2, 3), (COMPUTE, -1, -1, 1, 3)]


def test_without_a_trace_nothing_is_kept(clock):
    phases = Phases(clock)
    with phases.during(UL_SHARD):
        clock.now += 1
    assert phases.spans == []
