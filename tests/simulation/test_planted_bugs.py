"""Each bug that is planted on purpose is found within a thousand seeds."""

import logging

import pytest

from tests.simulation.planted import PLANTED, find

SEEDS = 1000
SHOWS_SOON = {"owner_that_trusts_its_own_mean", "manifest_before_its_parts"}
"""In the first seed: cheap enough for every run of the suite."""


def _marked(plant):
    slow = [pytest.mark.slow, pytest.mark.timeout(900)]
    return pytest.param(plant, marks=[] if plant.__name__ in SHOWS_SOON else slow)


@pytest.mark.parametrize("plant", [_marked(plant) for plant in PLANTED])
def test_planted_bug_is_found(plant, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smlt"), "disabled", True)
    assert find(plant, monkeypatch, range(SEEDS)) is not None
