"""What a job is forecast to take and cost, against bills by hand and a search of all plans."""

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt.control.forecast import Workload, forecasts, out_of_reach, recommended
from smlt.control.goals import Goals
from smlt.control.performance_model import fit_performance
from smlt.control.plan_grid import plan_grid, plans_of
from smlt.control.prices import read_prices
from smlt.control.step_cost import ParameterStorePrice, StepCost
from smlt.control.step_measurement import Granularity, Measurement, Setting
from smlt.errors import UserError
from smlt.messages.job import JobSpec, Limits, ResourcePlan

FIRST = ResourcePlan(workers=4, memory_mb=1769)
GRADIENT = 40_000_000
WORK = Workload(
    steps=2000,
    batch_size=64,
    gradient_bytes=GRADIENT,
    shard_bytes=4 << 20,
    evaluations=4,
    evaluation_s=8.0,
    start_s=5.0,
    save_s=1.0,
)
NODE = ParameterStorePrice(kind="node", node="cache.r7g.large")
PLANS = plans_of(plan_grid(JobSpec(target="t:T", virtual_workers=64, most_workers=64), FIRST))


def law(plan):
    vcpus = plan.memory_mb / 1769
    speed = vcpus if vcpus < 1 else 1 / (0.2 + 0.8 / vcpus)
    return 0.25 * -(-64 // plan.workers) / speed + 0.1 + 0.02 * (plan.workers - 1)


def model(plans=((2, 884), (4, 1769), (8, 5307), (16, 1769), (48, 3538))):
    return fit_performance(
        [
            Measurement(
                setting=Setting(workers=n, memory_mb=mb, samples=64, wire_bytes=GRADIENT),
                step_s=law(ResourcePlan(workers=n, memory_mb=mb)),
            )
            for n, mb in plans
        ],
        Granularity(virtual_workers=64),
    )


def rows(goals=None, work=WORK, store=NODE, plans=PLANS, **options):
    cost = StepCost(
        prices=read_prices(),
        store=store,
        gradient_bytes=work.gradient_bytes,
        shard_bytes=4 << 20,
    )
    return forecasts(plans, model(), work, cost, goals or Goals(), Limits(), **options)


@cache
def whole_grid():
    return rows()


def test_time_and_cost_are_those_of_a_bill_worked_out_by_hand():
    [row] = rows(plans=[FIRST])
    # 2,000 steps and 4 evaluations shared by 4 workers; functions end after 15 minutes, 2 early,
    # and each generation takes 6 s beside its steps.
    steps_s = 2000 * row.step_s + 4 * 8.0 / 4
    generations = math.ceil(steps_s / (900 - 120 - 6))
    seconds = steps_s + 6 * generations
    assert row.time_s == pytest.approx(seconds)
    functions = 4 * 1769 / 1024 * 0.0000166667 * seconds + generations * 4 * 0.0000002
    assert row.cost_usd == pytest.approx(functions + seconds / 3600 * 0.1752)
    assert row.step_s == pytest.approx(law(FIRST), rel=0.1)
    assert row.least_s < row.time_s < row.most_s


def test_requests_to_s3_are_paid_for_and_waited_for():
    [valkey], [s3] = (
        rows(plans=[FIRST], store=ParameterStorePrice()),
        rows(plans=[FIRST], store=ParameterStorePrice(kind="s3")),
    )
    assert s3.time_s > valkey.time_s + 2000 * 0.5
    shards = math.ceil(GRADIENT / (4 << 20))
    # 4 owners share them. Frames are put and announced; 8 waits have 3 looks each. Beside that,
    # 4 workers ask for 3 PUTs and GETs a second, and the client lists.
    shards = 4 * math.ceil(shards / 4)
    puts, gets = shards * 4 * 2 + 8 * 3, 2 * shards * 3
    requests = 2000 * (puts * 0.000005 + gets * 0.0000004)
    requests += s3.time_s * (15 * 0.000005 + 12 * 0.0000004)
    rate = 4 * 1769 / 1024 * 0.0000166667
    assert s3.cost_usd - valkey.cost_usd == pytest.approx(
        requests + rate * (s3.time_s - valkey.time_s), rel=0.01
    )


def test_the_front_holds_exactly_the_plans_that_none_beats_in_both():
    found = rows()
    for row in found:
        beaten = any(
            other.time_s <= row.time_s
            and other.cost_usd <= row.cost_usd
            and (other.time_s, other.cost_usd) != (row.time_s, row.cost_usd)
            for other in found
        )
        assert row.on_front == (not beaten), row


@given(
    deadline=st.none() | st.floats(10, 20_000),
    budget=st.none() | st.floats(0.001, 20),
)
def test_the_recommended_plan_is_the_best_of_the_whole_grid(deadline, budget):
    goals = Goals(deadline_s=deadline, budget_usd=budget)
    found = [replace(r, meets_goals=goals.met_by(r.time_s, r.cost_usd)) for r in whole_grid()]
    best = recommended(found, goals)
    within = [
        row
        for row in found
        if (deadline is None or row.time_s <= deadline)
        and (budget is None or row.cost_usd <= budget)
    ]
    if not within:
        assert out_of_reach(found, goals)
        return
    assert out_of_reach(found, goals) == ""
    assert best in within
    if deadline is not None:
        assert best.cost_usd == min(row.cost_usd for row in within)
    elif budget is not None:
        assert best.time_s == min(row.time_s for row in within)
    else:
        assert best.time_s * best.cost_usd == min(r.time_s * r.cost_usd for r in within)


def test_an_impossible_goal_is_named_with_what_is_possible():
    soonest = min(rows(), key=lambda row: row.time_s)
    goals = Goals(deadline_s=30)
    told = out_of_reach(rows(goals), goals)
    assert "deadline of 30 s is out of reach" in told
    assert f"{soonest.plan.workers} workers" in told
    cheapest = min(rows(), key=lambda row: row.cost_usd)
    goals = Goals(budget_usd=0.001)
    assert f"${cheapest.cost_usd:.4g}" in out_of_reach(rows(goals), goals)
    goals = Goals(deadline_s=1.01 * soonest.time_s, budget_usd=1.01 * cheapest.cost_usd)
    assert "cannot both be met" in out_of_reach(rows(goals), goals)


def test_plans_without_the_memory_are_left_out():
    found = rows(work=replace(WORK, needed_mb=3000))
    assert min(row.plan.memory_mb for row in found) == 3538
    with pytest.raises(UserError, match="about 23,000 MB"):
        rows(work=replace(WORK, needed_mb=20_000))


def test_doubt_widens_the_interval_only():
    [sure], [unsure] = rows(plans=[FIRST]), rows(plans=[FIRST], doubt=2.0)
    assert unsure.time_s == sure.time_s
    assert unsure.most_s > 1.5 * sure.most_s
    assert unsure.least_s < sure.least_s


def test_where_nothing_was_sent_yet_links_say_what_to_expect():
    """One rank alone was timed: 40 MB go up and down at 70 MB/s, and through one store."""
    alone = fit_performance(
        [
            Measurement(
                setting=Setting(workers=1, samples=samples, wire_bytes=GRADIENT),
                step_s=0.05 * samples,
            )
            for samples in (4, 16, 64)
        ]
    )
    settings = [Setting(workers=n, samples=64, wire_bytes=GRADIENT) for n in (1, 16, 32)]
    predicted = alone.predict(settings)
    for n, step_s, low_s, high_s in zip(
        (1, 16, 32), predicted.step_s, predicted.low_s, predicted.high_s, strict=True
    ):
        link_s = 2 * 40e6 * (n - 1) / n / 70e6
        store_s = 3 * 40e6 * (n - 1) / 1.25e9
        expected = 3.2 / n + link_s + store_s
        assert step_s == pytest.approx(expected, rel=0.1)
        assert low_s < expected < high_s
