"""Jobs whose gradients are rounded on the wire, or go over a slow link."""

from __future__ import annotations

import pytest

from jobs.harness import SMALL
from smlt.report.events import read_events

CALL = (SMALL, "--workers", "2", "--wire-dtype", "bf16", "--json", "--quiet")


@pytest.mark.slow
def test_what_the_ranks_owe_is_in_the_checkpoint(place):
    whole = place.train(*CALL, "--steps", "20").check(0).summary
    first = place.train(*CALL, "--steps", "7").check(0).summary
    kept = list(place.run.glob(f"objects/**/{first['job_id']}/**/residual-*"))
    assert len({path.name for path in kept}) == 2

    longer = place.smlt("resume", first["job_id"], "--steps", "20", "--json").check(0).summary

    assert longer["weights_digest"] == whole["weights_digest"]
    exact = place.train(SMALL, "--workers", "2", "--steps", "20", "--json").check(0).summary
    assert exact["weights_digest"] != whole["weights_digest"]


@pytest.mark.slow
def test_another_number_of_workers_goes_on(place):
    first = place.train(*CALL, "--steps", "7").check(0).summary
    again = place.smlt("resume", first["job_id"], "--workers", "3", "--steps", "12", "--json")
    assert again.check(0).summary["steps"] == 12


def test_exact_determinism_refuses_it(place):
    refused = place.train(*CALL, "--determinism", "exact").check(2)
    assert "exact determinism needs gradients as they are" in refused.sentence
    refused = place.train(SMALL, "--wire-dtype", "fp8").check(2)
    assert "write fp32, bf16, fp16 or auto" in refused.sentence


@pytest.mark.slow
def test_the_first_steps_find_out_that_rounding_pays_on_a_slow_link(place):
    call = (SMALL, "--workers", "2", "--link-mbps", "2")
    call += ("--param", "width=200000", "--param", "lr=1e-6")
    ended = place.train(*call, "--steps", "24", "--wire-dtype", "auto", "--json").check(0)
    [log] = place.run.glob("jobs/*/events.jsonl")
    [told] = [event.fields for event in read_events(log) if event.name == "shards"]
    assert told["wire_dtype"] == "bf16"
    assert told["step"] < 24
    assert {" in bf16," in way for way in told["tried"]} == {True, False}
    assert ended.summary["shards"] == told["text"]


@pytest.mark.slow
def test_a_slow_link_changes_no_bit(place):
    call = (SMALL, "--workers", "2", "--steps", "12", "--json", "--quiet")
    slow = place.train(*call, "--link-mbps", "0.05").check(0).summary
    assert slow["weights_digest"] == place.train(*call).check(0).summary["weights_digest"]
