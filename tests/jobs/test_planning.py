"""``smlt plan`` and ``smlt tune`` as a user meets them."""

from __future__ import annotations

import json

import pytest

from jobs.harness import SMALL, TASKS
from smlt.report.events import read_events

KNOWN = ("--measured", "1x1769=2.0", "--measured", "8x1769=.4")
# Learns nothing, and takes 4 ms for each sample.
SLOW = f"""
import sys, time
sys.path.insert(0, {str(TASKS)!r})
from small import Regression

class Slow(Regression):
    def __init__(self):
        super().__init__(width=20_000, lr=0.0)

    def gradients(self, samples, into, ready):
        time.sleep(0.004 * len(samples))
        return super().gradients(samples, into, ready)
"""
LONG = ("--epochs", "100", "--batch-size", "64")


def test_a_plan_is_made_of_known_step_times_and_nothing_is_started(place):
    ended = place.smlt("plan", SMALL, *LONG, *KNOWN, "--deadline", "10m", "--json").check(0)
    report = ended.summary
    plans = {(row["plan"]["workers"], row["plan"]["memory_mb"]): row for row in report["plans"]}
    assert report["workload"]["steps"] == 400
    assert plans[8, 1769]["step_s"] == pytest.approx(0.4, rel=0.1)
    assert plans[1, 1769]["step_s"] == pytest.approx(2.0, rel=0.1)
    in_time = [row for row in plans.values() if row["time_s"] <= 600]
    assert report["best"]["cost_usd"] == min(row["cost_usd"] for row in in_time)
    assert all(row["meets_goals"] == (row["time_s"] <= 600) for row in plans.values())
    assert report["notices"] == []
    assert not (place.run / "jobs").exists()


def test_gradients_in_16_bits_are_planned_as_half_the_bytes(place):
    def planned(*more):
        return place.smlt("plan", SMALL, *LONG, *KNOWN, "--json", *more).check(0).summary

    full, half = planned(), planned("--wire-dtype", "bf16")
    assert half["workload"]["wire_bytes"] == full["workload"]["wire_bytes"] / 2 > 0


def test_a_goal_out_of_reach_is_said_and_s3_is_compared(place):
    ended = place.smlt("plan", SMALL, *LONG, *KNOWN, "--budget", "0.0001").check(0)
    assert "the budget of $0.0001 is out of reach: the cheapest" in ended.out
    assert "With S3 instead of Valkey: --workers" in ended.out
    assert "★" in ended.out
    assert "Recommended: --workers" in ended.out
    assert "the job's share (each that has begun is billed)" in ended.out


def test_what_costs_nothing_is_drawn_all_the_same(place):
    (place.path / "free.toml").write_text(
        "[us-east-1.lambda]\nper_request = 0.0\nper_gb_second.x86_64 = 0.0\n"
        '[us-east-1.elasticache.nodes]\n"cache.r7g.large" = 0.0\n'
    )
    goals = ("--deadline", "1s", "--budget", "1")
    ended = place.smlt("plan", SMALL, *LONG, *KNOWN, *goals, "--prices", "free.toml").check(0)
    assert "the deadline of 1 s is out of reach" in ended.out
    assert "and $0, with Valkey" in ended.out


def test_costs_are_those_of_the_functions_architecture_and_region(place):
    def planned(settings):
        (place.path / "smlt.toml").write_text("[aws]\n" + settings)
        report = place.smlt("plan", SMALL, *LONG, *KNOWN, "--json").check(0).summary
        plans = {(row["plan"]["workers"], row["plan"]["memory_mb"]): row for row in report["plans"]}
        row = plans[8, 1769]
        return row["cost_usd"] - row["time_s"] * 0.1752 / 3600, row["time_s"], report["notices"]

    for architecture, rate in (("x86_64", 0.0000166667), ("arm64", 0.0000133334)):
        usd, seconds, notices = planned(f'architecture = "{architecture}"')
        assert usd == pytest.approx(8 * 1769 / 1024 * seconds * rate, rel=1e-3)
        assert notices == []
    notices = planned('region = "eu-central-1"')[2]
    assert "not all prices of eu-central-1 are known: costs are those of us-east-1" in notices[0]
    assert planned('region = "us-west-2"')[2] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--measured", "4=1"], "--measured is '4=1': write workers"),
        (["--measured", "4x1769=nan"], "--measured is '4x1769=nan'"),
        (["--measured", "4x1769=1e300"], "--measured is '4x1769=1e300'"),
        (["--data", "s3://nobody/x", "--s3-endpoint", "h"], "write http://host:9000"),
        (["--node", "cache.none"], "there is no price of us-east-1.elasticache.nodes.cache.none"),
        (["--budget", "nan"], "--budget is 'nan': give a number"),
        (["--prices", "garbage.toml"], "not valid TOML"),
        (["--like", "nobody"], "There are no jobs in"),
        (["--param", "nonsense=1"], "nonsense"),
    ],
)
def test_a_wrong_call_is_refused_in_a_sentence(place, arguments, said):
    (place.path / "garbage.toml").write_text("what = [is this")
    assert said in place.smlt("plan", SMALL, *arguments).check(2).sentence


def test_a_task_that_cannot_be_timed_is_named_with_its_place(place):
    (place.path / "bad.py").write_text(
        (TASKS / "small.py").read_text().replace("step = int(self.steps) + 1", "step = 1 / 0")
    )
    ended = place.smlt("plan", "bad.py:Regression", "--profile").check(2)
    assert "raised ZeroDivisionError: division by zero (bad.py:" in ended.sentence


@pytest.mark.slow
def test_a_job_that_ran_tells_how_long_steps_take(place):
    job = place.train(SMALL, "--workers", "2", "--steps", "12", "--json").check(0).summary["job_id"]
    report = place.smlt("plan", SMALL, *LONG, "--like", job, "--json").check(0).summary
    plans = {(row["plan"]["workers"], row["plan"]["memory_mb"]): row for row in report["plans"]}
    measured = plans[2, 1769]
    events = (place.run / "jobs" / job / "events.jsonl").read_text().splitlines()
    steps = [e["seconds"] for e in map(json.loads, events) if e["event"] == "step"]
    assert 0.5 * min(steps) < measured["step_s"] < 2 * max(steps)


def test_how_gradients_travel_is_planned_on_request(place):
    tuned = ("--tune", "aggregators,wire-dtype")
    ended = place.smlt("plan", SMALL, *LONG, *KNOWN, *tuned).check(0)
    assert "aggregators" in ended.out.splitlines()[1]
    assert " --wire-dtype " in ended.out
    plans = place.smlt("plan", SMALL, *LONG, *KNOWN, *tuned, "--json").check(0).summary["plans"]
    kinds = {(row["plan"]["aggregators"], row["plan"]["wire_dtype"]) for row in plans}
    assert {(1, "fp32"), (1, "bf16"), (2, "bf16")} <= kinds


@pytest.mark.slow
def test_aggregators_and_the_wire_dtype_are_tried_on_real_steps(place):
    # 80 KB of gradient at 0.4 MB a second: half the bytes save much of a step.
    (place.path / "slow.py").write_text(SLOW)
    ended = place.smlt(
        "tune", "slow.py:Slow", "--epochs", "300", "--link-mbps", "0.4", "--max-workers", "4",
        "--tune", "aggregators,wire-dtype", "--json", limit_s=160,
    ).check(0)  # fmt: skip
    found = ended.summary
    assert {trial["plan"]["wire_dtype"] for trial in found["trials"]} == {"fp32", "bf16"}
    [log] = place.run.glob("jobs/*/events.jsonl")
    events = list(read_events(log))
    ran = [e.fields["wire_dtype"] for e in events if e.name == "generation"]
    assert set(ran) == {"fp32", "bf16"}
    reasons = [e.fields["reason"] for e in events if e.name == "plan"]
    assert any("bf16 on the wire" in reason for reason in reasons)
    resumed = place.smlt(
        "resume", found["job_id"], "--workers", "4", "--aggregators", "2", "--wire-dtype", "bf16",
        "--steps", str(found["steps"] + 4), "--json",
    ).check(0)  # fmt: skip
    kept = resumed.summary
    assert (kept["workers"], kept["aggregators"], kept["wire_dtype"]) == (4, 2, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["sampled", "skopt"])
def test_a_tuning_tries_real_plans_and_the_job_goes_on_with_the_best(place, surrogate):
    ended = place.smlt(
        "tune", SMALL, "--epochs", "500", "--surrogate", surrogate, "--json", limit_s=110
    ).check(0)
    found = ended.summary
    assert found["state"] == "stopped"
    assert found["message"].startswith("tuned: ")
    assert len(found["trials"]) >= 2
    assert found["steps"] > 5 * len(found["trials"])
    for trial in found["trials"]:
        gigabytes = trial["plan"]["workers"] * trial["plan"]["memory_mb"] / 1024
        assert trial["step_usd"] == pytest.approx(trial["step_s"] * gigabytes * 0.0000166667)
    best = [f"--workers={found['best']['workers']}", f"--memory-mb={found['best']['memory_mb']}"]
    resumed = place.smlt(
        "resume", found["job_id"], *best, "--steps", str(found["steps"] + 8), "--json"
    ).check(0)
    assert resumed.summary["state"] == "completed"
    assert resumed.summary["steps"] == found["steps"] + 8
    assert resumed.summary["workers"] == found["best"]["workers"]
