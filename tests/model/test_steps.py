"""Every interleaving of the steps of up to three ranks, and what each rule of them is there for."""

from functools import partial

import pytest

from tests.model import steps
from tests.model.checker import Broken, explore


def walk(n, mutant="", limit=4_000_000):
    successors = partial(steps.successors, mutant=mutant)
    return explore(steps.start(n), successors, steps.wrong, steps.is_final, limit)


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("n", "taken", "troubles"),
    [
        (1, 2, 2),
        (2, 2, 1),
        (3, 1, 0),
        pytest.param(2, 2, 2, marks=SLOW),
        pytest.param(3, 1, 1, marks=SLOW),
        pytest.param(3, 2, 1, marks=SLOW),
    ],
)
def test_steps_keep_their_promises_in_every_interleaving(n, taken, troubles, monkeypatch):
    monkeypatch.setattr(steps, "STEPS", taken)
    monkeypatch.setattr(steps, "TROUBLES", troubles)
    states = walk(n)
    print(f"{n} ranks, {taken} steps, {troubles} troubles: {states:,} states")
    assert states > 10


@pytest.mark.parametrize(
    ("mutant", "what", "troubles"),
    [
        ("notice before its frame", "without cause", 0),
        ("owner trusts its own mean", "different means", 0),
        ("discard a step early", "without cause", 0),
        (steps.ONE_FLAG, "different steps|went on|nothing can happen", 0),
        ("the marker is not checked", "the store has lost", 1),
        ("a wait without a limit", "nothing can happen", 1),
    ],
)
def test_rule_that_is_left_out_has_a_counterexample(mutant, what, troubles, monkeypatch):
    monkeypatch.setattr(steps, "TROUBLES", troubles)
    with pytest.raises(Broken, match=what):
        walk(2, mutant)


def test_an_abort_that_nobody_hears_of_ends_a_generation_all_the_same():
    assert walk(2, "nobody listens to an abort") > 1000
