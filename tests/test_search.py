"""Successive halving: the ladder, who goes on, and one budget for all, with jobs that play."""

import asyncio
from types import SimpleNamespace
from typing import ClassVar

import pytest

from smlt import search
from smlt.cli.search import combinations
from smlt.config import TrainConfig
from smlt.control.task_scheduler import PAUSED
from smlt.errors import ConfigError, SmltError
from smlt.search import Rung, Search, rungs

TASK = """
import smlt

class Net(smlt.Task):
    def __init__(self, width: int = 1, depth: int = 1, lr: float = 0.1):
        pass

    def dataset(self, data, split): ...
    def initialize(self, seed, total_steps): ...
    def state(self): ...
    def gradients(self, samples, into, ready): ...
    def apply(self, mean, present): ...
"""


@pytest.mark.parametrize(
    ("candidates", "epochs", "factor", "ladder"),
    [
        (8, 8, 2, [(8, 1), (4, 2), (2, 4), (1, 8)]),
        (6, 4, 2, [(6, 1), (3, 1), (2, 2), (1, 4)]),
        (9, 9, 3, [(9, 1), (3, 3), (1, 9)]),
        (8, 3, 2, [(8, 1), (2, 2), (1, 3)]),
        (5, 1, 2, [(5, 1)]),
    ],
)
def test_each_rung_has_fewer_candidates_and_more_epochs(candidates, epochs, factor, ladder):
    found = [(rung.candidates, rung.epochs) for rung in rungs(candidates, epochs, factor)]
    assert found[0][0] == candidates
    assert found[-1][1] == epochs
    assert [epoch for _, epoch in found] == sorted({epoch for _, epoch in found})
    assert set(found[1:]) <= set(ladder)
    assert rungs(8, 8)[0] == Rung(8, 1)


class Played:
    """A job that costs a dollar an epoch and stops at its budget; a wider net has less error."""

    ran: ClassVar = []

    def __init__(self, params, until, budget, done=0):
        self.width = int(dict(p.split("=") for p in params)["width"])
        self.params, self.until, self.budget, self.done = params, until, budget, done
        self.progress = SimpleNamespace(summary=lambda state, message: self.ended(state, message))

    def ended(self, state, message):
        return search.Summary(
            job_id=f"job-{self.width}", state=state, message=message, steps=1, epochs=self.done,
            metrics={"error": 1 / self.width / self.done} if self.done else {},
            seconds=10.0 * self.done,
            billed_gb_s=0, cost_usd=float(self.done), cost_is_estimate=False, workers=1,
            memory_mb=1769, generations=1, weights_digest=None, model_path=None,
            best_model_path=None, checkpoint=None,
        )  # fmt: skip

    async def train(self):
        self.ran.append((self.width, self.until, self.budget))
        if self.width == 13:
            raise SmltError("it broke")
        self.done = min(self.until, int(self.budget))
        if self.done < self.until:
            return self.ended("stopped", "stopped before it crosses its budget")
        return self.ended("completed", "done") if self.until == 4 else self.ended("stopped", PAUSED)


@pytest.fixture
def play(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(TASK)
    monkeypatch.setattr(Played, "ran", [])
    known = {}

    def session(config, *, pause_after=None):
        job = Played(config.params, pause_after or config.epochs, config.budget or 1e9)
        known[f"job-{job.width}"] = job
        return job

    def continuation(run_dir, job_id, *, changes):
        job = known[job_id]
        return Played(job.params, changes.pause_after or 4, changes.budget or 1e9, job.done)

    monkeypatch.setattr(search, "Session", session)
    monkeypatch.setattr(search, "Continuation", continuation)

    def run(widths, **settings):
        config = TrainConfig(target="net.py:Net", epochs=4, keep_best="error", **settings)
        found = Search(config, [(f"width={width}",) for width in widths])
        return found, asyncio.run(found.train())

    return run


def test_the_better_half_goes_on_and_the_best_is_trained_to_the_end(play):
    found, summary = play((1, 4, 2, 3))
    assert [(width, until) for width, until, _ in Played.ran] == [
        (1, 1), (4, 1), (2, 1), (3, 1), (4, 2), (3, 2), (4, 4),
    ]  # fmt: skip
    assert (summary.job_id, summary.state) == ("job-4", "completed")
    assert "width=4 is best" in summary.message
    assert [c.epochs for c in found.ranking] == [4, 2, 1, 1]
    # Four of one epoch, two of one more, one of two more: nothing was trained twice.
    assert summary.cost_usd == 4 + 2 + 2


def test_a_budget_is_shared_and_never_exceeded(play):
    found, summary = play((1, 4, 2, 3), budget=8.5)
    budgets = [budget for _, _, budget in Played.ran]
    assert budgets[0] == pytest.approx(8.5 / 8)  # eight epochs in all
    assert all(budget >= until for _, until, budget in Played.ran)
    assert budgets[-1] == pytest.approx(2 + 8.5 - 6)  # all that is left, for the best
    assert summary.cost_usd <= 8.5
    assert found.spent_usd == summary.cost_usd


def test_candidates_that_fail_or_run_out_of_money_are_left_behind(play):
    found, summary = play((13, 1, 2))
    assert summary.job_id == "job-2"
    assert found.ranking[-1].params == ("width=13",)
    assert found.ranking[-1].summary.message == "it broke"
    with pytest.raises(SmltError, match=r"no candidate .*width=1: stopped before it crosses"):
        play((1, 2), budget=0.9)


def test_a_parameter_that_the_task_has_not_is_found_before_anything_runs(play):
    config = TrainConfig(target="net.py:Net", keep_best="error")
    found = Search(config, [("width=1",), ("height=2",)])
    with pytest.raises(SmltError, match="no parameter height"):
        asyncio.run(found.train())
    assert Played.ran == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_best": None}, "Name the metric by which candidates are compared"),
        ({"steps": 5}, "steps does not go with a search"),
        ({"until": "error<=1", "keep_best": "error"}, "until does not go with a search"),
    ],
)
def test_a_search_without_end_or_metric_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Search(TrainConfig(target="t:T", **{"keep_best": "error"} | settings), [("a=1",), ("a=2",)])


def test_candidates_are_all_combinations():
    assert combinations(["width=1,2", "depth=3, 4"]) == [
        ("width=1", "depth=3"), ("width=1", "depth=4"),
        ("width=2", "depth=3"), ("width=2", "depth=4"),
    ]  # fmt: skip
    for wrong in (["width"], ["width="], ["width=1,,2"], ["2x=1"], []):
        with pytest.raises(ConfigError, match="--try"):
            combinations(wrong)
