"""Every ending of a generation of up to three ranks, and what each rule is there for."""

from functools import partial

import pytest

from tests.model import endings
from tests.model.checker import Broken, explore


def explore_all(n, mutant=""):
    successors = partial(endings.successors, mutant=mutant)
    return sum(
        explore(start, successors, endings.wrong, endings.is_final) for start in endings.starts(n)
    )


@pytest.mark.parametrize("n", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_endings_keep_their_promises_in_every_interleaving(n):
    assert explore_all(n) > 100


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        ("leave without a manifest", "left in peace"),
        ("manifest before its parts", "before its parts"),
        ("read what is newest", "superseded"),
        ("draw before all have left", "still saves"),
        ("wait for a higher step", "nothing can happen"),
        ("parts cut by who is left", "overwritten"),
    ],
)
def test_rule_that_is_left_out_has_a_counterexample(mutant, what):
    with pytest.raises(Broken, match=what):
        explore_all(2, mutant)
