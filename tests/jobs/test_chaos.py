"""--chaos: a Lambda service that misbehaves changes no bit of the weights."""

from __future__ import annotations

import pytest

from jobs.harness import SMALL, TASKS

STEADY = f"{TASKS / 'steady.py'}:Steady"
OPTIONS = ("--workers", "3", "--json")


def test_mischief_is_announced_and_refused_where_there_is_no_lambda(place):
    refused = place.train(SMALL, "--chaos", "1", "--inline").check(2)
    assert "--chaos is 1: --inline has no Lambda" in refused.sentence


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_digest_is_that_of_a_kind_service(place, seed):
    steps = ("--steps", "300", "--param", "pace=0.1")
    calm = place.train(STEADY, *OPTIONS, "--steps", "300", "--param", "pace=0", limit_s=60)
    job = place.start(STEADY, *OPTIONS, *steps, "--chaos", str(seed))
    ended = job.end(300).check(0)
    assert f"Chaos (seed {seed})" in ended.err
    assert ended.summary["weights_digest"] == calm.check(0).summary["weights_digest"]
    log = (job.folder / "cloud" / "logs" / "cloud.log").read_text()
    fates = [line for line in log.splitlines() if "chaos: event" in line]
    assert fates
    # Whoever was sent for in vain was sent for again.
    if any("deliveries=()" in fate for fate in fates):
        assert job.events("called again")
