"""The scenarios of the paper, as examples/README.md runs them: what is asserted are decisions."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from jobs.harness import CODE, TASKS

EXAMPLES = CODE / "examples"
DATA = EXAMPLES / "mnist" / "data"
LIMIT_S = 500.0  # on cores that others use as well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def images():
    if not DATA.is_dir():
        subprocess.run([sys.executable, EXAMPLES / "mnist" / "prepare.py"], check=True)


def example(place, command, path, *arguments):
    job = place.start(
        f"{EXAMPLES / path}", "--data", str(DATA), "--json", *arguments, command=command
    )
    return job, job.end(LIMIT_S).check(0).summary


def told(job, kind, field):
    return [event[field] for event in job.events(kind)]


def test_dynamic_batching_is_planned_anew_with_every_batch(place):
    job, summary = example(
        place, "train", "dynamic_batching/train.py:Doubling",
        "--epochs", "6", "--adapt", "--workers", "2", "--max-workers", "4",
    )  # fmt: skip
    sizes = told(job, "step", "batch_size")
    assert sorted(set(sizes)) == [128, 256, 512]
    assert sizes == sorted(sizes)
    notices = told(job, "notice", "text")
    for samples in (256, 512):
        assert f"a step now has {samples} samples: looking for the best plan again" in notices
    assert "the model has grown: looking for the best plan again" in notices
    assert summary["metrics"]["accuracy"] > 0.8


def test_a_deadline_alone_is_met(place):
    job, summary = example(
        place, "train", "mnist/softmax.py:Softmax", "--epochs", "40", "--deadline", "4m"
    )
    assert summary["state"] == "completed"
    assert summary["seconds"] <= 240
    # Going over to another plan takes seconds: it is done only if the steps that are left repay it.
    tried = told(job, "plan", "reason")
    changed = [reason for reason in tried if not reason.startswith("staying")]
    assert tried
    assert all(reason.startswith("trying") or "of those tried" in reason for reason in changed)
    assert len(job.events("generation")) == 1 + len(changed)


# 8 ms a sample, whatever the machine does: so many workers share them.
SLOW = f"""
import sys, time
sys.path.insert(0, {str(TASKS)!r})
from small import Regression

class Slow(Regression):
    def gradients(self, samples, into, ready):
        time.sleep(0.008 * len(samples))
        return super().gradients(samples, into, ready)
"""


def test_a_plan_that_would_be_late_is_left_in_time(place):
    """One worker needs 410 s at least; four can do with less than 150."""
    (place.path / "slow.py").write_text(SLOW)
    job = place.start(
        "slow.py:Slow", "--steps", "800", "--workers", "1", "--max-workers", "8",
        "--deadline", "300s", "--json",
    )  # fmt: skip
    summary = job.end(LIMIT_S).check(0).summary
    assert (summary["state"], summary["steps"]) == ("completed", 800)
    assert summary["seconds"] <= 300
    assert summary["workers"] > 1
    assert told(job, "generation", "workers")[0] == 1
    assert "it may meet the limits" in told(job, "plan", "reason")[0]


def test_a_deadline_out_of_reach_is_told_early_with_what_would_meet_it(place):
    """Eight workers need 60 s for a thousand steps of 100,000."""
    (place.path / "slow.py").write_text(SLOW)
    job = place.start(
        "slow.py:Slow", "--steps", "100000", "--workers", "2", "--max-workers", "8",
        "--deadline", "150s", "--json",
    )  # fmt: skip
    summary = job.end(LIMIT_S).check(130).summary
    assert summary["message"] == "stopped at its deadline of 2 min 30 s"
    assert summary["seconds"] <= 150 + 10
    warning = next(e for e in job.events("notice") if "is out of reach" in e["text"])
    assert re.search(r"--deadline \d+m would do", warning["text"])
    begun = job.events("generation")[0]["t"]
    assert warning["t"] - begun < 100


def test_a_budget_alone_is_never_crossed(place):
    job = place.start(
        f"{EXAMPLES / 'mnist/softmax.py:Softmax'}", "--data", str(DATA), "--json",
        "--epochs", "100000", "--budget", "0.003",
    )  # fmt: skip
    summary = job.end(LIMIT_S).check(130).summary
    assert summary["message"] == "stopped before it crosses its budget of $0.003"
    assert 0.0015 < summary["cost_usd"] <= 0.003
    assert summary["checkpoint"]
    assert any("the budget of $0.003 is out of reach" in text for text in summary["notices"])


def test_an_architecture_is_found_within_one_budget(place):
    job = place.start(
        f"{EXAMPLES / 'architecture_search/train.py'}:Mlp", "--data", str(DATA), "--json",
        "--try", "width=2,64", "--try", "depth=1,2", "--keep-best", "accuracy", "--epochs", "3",
        "--workers", "2", "--budget", "0.05", "--no-adapt", command="search",
    )  # fmt: skip
    summary = job.end(LIMIT_S).check(0).summary
    by_params = {tuple(c["params"]): c for c in summary["candidates"]}
    # All are tried, the wide ones go on, and one of them is trained to the end.
    assert {c["epochs"] for c in by_params.values()} == {1, 2, 3}
    for depth in ("depth=1", "depth=2"):
        assert by_params["width=2", depth]["epochs"] == 1
        assert by_params["width=64", depth]["epochs"] >= 2
    assert sum(c["spent_usd"] for c in by_params.values()) == pytest.approx(summary["cost_usd"])
    assert summary["cost_usd"] <= 0.05
    assert summary["metrics"]["accuracy"] > 0.85
