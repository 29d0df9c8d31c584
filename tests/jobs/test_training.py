"""What a job gives: its weights, whatever the number of workers, and one JSON object."""

from __future__ import annotations

import pytest

from jobs.harness import SMALL


def test_two_runs_with_one_seed_give_one_digest(place):
    options = ("--workers", "2", "--steps", "20", "--json", "--quiet")
    first, second = (place.train(SMALL, *options).check(0) for _ in range(2))
    assert first.summary["weights_digest"].startswith("sha256:")
    assert first.summary["weights_digest"] == second.summary["weights_digest"]
    assert first.summary["job_id"] != second.summary["job_id"]
