"""Whole jobs on simulated time, by the real scheduler and resource manager: what they decide."""

import json
import random

import pytest

from benchmarks import bench_supervision
from benchmarks.bench_scaling import schemes, workload
from benchmarks.scaling.fleet import Weather
from benchmarks.scaling.simulated_job import play
from smlt.messages.job import ResourcePlan
from tests.control.published import read

FIRST = ResourcePlan(workers=8, memory_mb=1769)
CALM = Weather(deaths_per_hour=0, straggling=0)


def dollars(plan, seconds):
    return plan.workers * plan.memory_mb / 1024 * 0.0000166667 * seconds


def test_a_job_of_a_fixed_plan_takes_and_costs_what_its_steps_do():
    law = workload(30.0)
    played = play(law, FIRST, steps=200, weather=CALM)
    assert (played.status, played.steps, played.generations) == ("completed", 200, 1)
    steps_s = 200 * law(FIRST, 0)
    assert steps_s < played.time_s < 1.03 * steps_s + 15
    assert dollars(FIRST, steps_s) < played.cost_usd < 1.05 * dollars(FIRST, steps_s + 15)
    assert played.decisions == []


def test_the_same_seed_gives_the_same_job():
    one, other = (play(workload(30.0), FIRST, steps=100, seed=3) for _ in range(2))
    assert (one.time_s, one.cost_usd, one.decisions) == (
        other.time_s,
        other.cost_usd,
        other.decisions,
    )


def test_functions_that_die_or_come_to_their_time_cost_generations_and_no_step_twice():
    weather = Weather(deaths_per_hour=1.0)
    played = play(workload(30.0), FIRST, steps=400, weather=weather)
    assert (played.status, played.steps) == ("completed", 400)
    assert played.deaths > 0
    # 400 steps of 3.9 s: at least one hand-over at 14 minutes, and one generation for each death.
    assert played.generations >= max(2, played.deaths)
    assert played.time_s < 400 * workload(30.0)(FIRST, 0) + 60 * played.generations


@pytest.mark.slow
def test_throttled_starts_end_in_a_plan_that_runs():
    weather = Weather(concurrency=32, deaths_per_hour=0)
    played = play(
        workload(30.0),
        FIRST,
        steps=2000,
        weather=weather,
        adapt=True,
        most_workers=256,
        deadline_s=7200.0,
    )
    assert (played.status, played.steps) == ("completed", 2000)
    assert played.plan.workers <= 32


@pytest.mark.parametrize(
    "goal", [{"deadline_s": 3600.0}, pytest.param({"budget_usd": 3.8}, marks=pytest.mark.slow)]
)
def test_an_adaptive_job_meets_its_goal_and_beats_the_plan_it_began_with(goal):
    law, steps = workload(30.0), 3000
    played = play(law, FIRST, steps, adapt=True, most_workers=256, **goal)
    assert (played.status, played.steps) == ("completed", steps)
    assert any(reason.startswith("trying") for reason in played.decisions)
    first_s = steps * law(FIRST, 0)
    if "deadline_s" in goal:
        assert played.time_s <= 3600 < first_s
    else:
        assert played.cost_usd <= 3.8
        assert played.time_s < 0.5 * first_s


@pytest.mark.slow
@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("seed", range(7))
def test_no_budget_is_crossed_by_more_than_a_step_whatever_happens(seed, adapt):
    """Any plan and budget, over hand-overs at 15 minutes and deaths."""
    rng = random.Random(seed)
    law = workload(rng.choice((30.0, 90.0)))
    first = ResourcePlan(workers=rng.choice((2, 8, 24)), memory_mb=rng.choice((884, 1769, 5307)))
    # Enough for 15 to 45 minutes of that plan, which are not enough for the job.
    budget = dollars(first, rng.uniform(900, 2700))
    played = play(
        law, first, steps=10**5, seed=seed, adapt=adapt, most_workers=64, budget_usd=budget,
        weather=Weather(deaths_per_hour=0.5),
    )  # fmt: skip
    assert (played.status, played.steps < 10**5) == ("stopped", True)
    step_usd = max(dollars(plan, law(plan, 0)) for plan in {first, played.plan})
    assert 0.7 * budget < played.cost_usd <= budget + step_usd
    assert any("is out of reach" in notice for notice in played.notices)


@pytest.mark.slow
def test_a_batch_that_doubles_twice_is_planned_anew():
    small, doubled, again = (workload(factor * 10.0) for factor in (1, 2, 4))

    def law(plan, step):
        return (small if step < 1500 else doubled if step < 3000 else again)(plan, step)

    played = play(law, FIRST, 4500, adapt=True, most_workers=256, weather=CALM)
    assert played.steps == 4500
    anew = [notice for notice in played.notices if "looking for the best plan again" in notice]
    assert anew
    # The larger the batch, the more workers.
    assert played.plan.workers * played.plan.memory_mb > FIRST.workers * FIRST.memory_mb


def test_smlts_scheme_has_the_published_shape_and_ours_is_never_slower():
    published = read("resnet18")["step_s"]["SMLT"]
    found = schemes(sizes=tuple(published["workers"]), steps=2)
    for row, seconds in zip(found["rows"], published["seconds"], strict=True):
        assert row["smlt_s"] == pytest.approx(seconds, rel=0.05)
        assert row["ours_s"] < row["smlt_s"]
        assert row["ours_job_s"] < row["smlt_job_s"]


@pytest.mark.slow
def test_many_workers_with_sockets_of_their_own_take_a_small_part_of_a_core(tmp_path, capsys):
    import asyncio

    found = asyncio.run(bench_supervision.measure(tmp_path, workers=60, seconds=3.0))
    assert found["steps_seen"] >= 2
    assert json.dumps(found)
    assert found["cores"] < 1
