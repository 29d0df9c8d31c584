"""Every interleaving of the steps of up to three ranks, and what each rule of them is there for."""

from functools import partial

import pytest

from tests.model import steps
from tests.model.checker import Broken, explore


@pytest.mark.parametrize("n", [1, 2, 3])
def test_steps_keep_their_promises_in_every_interleaving(n, monkeypatch):
    monkeypatch.setattr(steps, "STEPS", 2 if n < 3 else 1)
    assert explore(steps.start(n), steps.successors, steps.wrong, steps.is_final) > 10


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        ("notice before its frame", "gone|misses"),
        ("owner trusts its own mean", "different means"),
        ("discard a step early", "gone"),
        (steps.ONE_FLAG, "different steps|went on|nothing can happen"),
    ],
)
def test_rule_that_is_left_out_has_a_counterexample(mutant, what):
    with pytest.raises(Broken, match=what):
        explore(
            steps.start(2), partial(steps.successors, mutant=mutant), steps.wrong, steps.is_final
        )
