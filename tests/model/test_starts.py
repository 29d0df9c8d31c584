"""Every way in which a generation may begin, and what each rule of it is there for."""

from functools import partial

import pytest

from tests.model import starts
from tests.model.checker import Broken, explore

SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


def walk(n, *, exact=False, mutant="", limit=4_000_000):
    successors = partial(starts.successors, n=n, exact=exact, mutant=mutant)
    wrong = partial(starts.wrong, exact=exact)
    return explore(starts.State(), successors, wrong, starts.is_final, limit)


@pytest.mark.parametrize(
    ("n", "generations"),
    [(1, 1), (2, 1), pytest.param(1, 2, marks=SLOW), pytest.param(3, 1, marks=SLOW)],
)
def test_starts_keep_their_promises_in_every_interleaving(n, generations, monkeypatch):
    monkeypatch.setattr(starts, "GENERATIONS", generations)
    states = walk(n, exact=n == 3)
    print(f"{n} ranks, {generations} generations: {states:,} states")
    assert states > 100


@pytest.mark.parametrize(
    ("mutant", "what", "n"),
    [
        ("the job's state is written blindly", "drawn one generation", 1),
        ("a claim is released at the end", "as one rank", 1),
        ("whoever claims marks the store", "as one rank", 1),
        (f"{starts.UNLOOKED_CLAIM}, {starts.UNLOOKED_ROSTER}", "as one rank", 1),
        pytest.param("an exact roster of any number", "power of two", 3, marks=SLOW),
    ],
)
def test_rule_that_is_left_out_has_a_counterexample(mutant, what, n):
    with pytest.raises(Broken, match=what):
        walk(n, exact=n == 3, mutant=mutant)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", [starts.UNLOOKED_CLAIM, starts.UNLOOKED_ROSTER])
def test_one_look_for_the_marker_would_do(mutant):
    assert walk(1, mutant=mutant) > 1000
