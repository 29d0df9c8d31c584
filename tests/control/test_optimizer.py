"""The optimiser against published and made-up objectives, whose best plans are known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tuner_peers import regrets
from benchmarks.tuner_surfaces import read_curve
from smlt.control.feasibility import Feasibility
from smlt.control.optimizer import OBJECTIVE, Optimizer
from smlt.control.performance_prior import PerformancePrior
from smlt.control.search_grid import Dimension, SearchGrid
from smlt.control.skopt_surrogate import SkoptGaussianProcess
from smlt.control.step_measurement import Setting
from smlt.control.surrogate import SampledGaussianProcess
from tests.control.published import read

WORKERS = Dimension("workers", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))
MEMORY = Dimension("memory_mb", (884, 1769, 3538, 5307, 7076, 8845))


def search(grid, *, seed=0, surrogate=SampledGaussianProcess, **options):
    return Optimizer(grid, surrogate(grid), np.random.default_rng(seed), **options)


def utility_grid():
    utility = np.array(read("bert_small_utility")["utility"])
    return SearchGrid([Dimension("workers", tuple(range(10, 10 + len(utility))))]), utility


def mean_regret(seeds, evaluations, *, noise=0.0, prior=False):
    """Regret in per cent of the published utility's maximum, by number of evaluations."""
    grid, utility = utility_grid()
    regrets = []
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        priors = {OBJECTIVE: PerformancePrior(grid, setting)} if prior else None
        optimizer = search(grid, seed=seed, priors=priors)
        tried = []
        for _ in range(evaluations):
            plan = optimizer.ask()
            tried.append(grid.index(plan))
            factor = 1 + noise * rng.standard_normal()
            optimizer.tell(plan, factor / utility[tried[-1]], noise=noise)
        best = grid.index(optimizer.recommend().plan) if noise else tried
        regrets.append(1 - np.max(utility[best]) / utility.max())
    return 100 * float(np.mean(regrets))


def setting(plan):
    return Setting(workers=plan["workers"], memory_mb=plan.get("memory_mb", 1769))


@pytest.mark.parametrize(
    ("evaluations", "options", "target"),
    [
        (5, {}, 0.2),
        (8, {}, 0.02),
        (4, {"prior": True}, 0.1),
        (8, {"noise": 0.05}, 1.0),
    ],
    ids=["after 5", "after 8", "after 4 with prior", "after 8 with noise"],
)
def test_regret_on_the_published_utility_meets_its_target(evaluations, options, target):
    assert mean_regret(20, evaluations, **options) <= target


def job(plan):
    """Seconds and dollars of a job that follows no formula of ours."""
    vcpus = plan["memory_mb"] / 1769
    speed = min(vcpus, 1) * max(vcpus, 1) ** 0.8
    seconds = 4000 / plan["workers"] / speed + np.hypot(30, 4 * plan["workers"])
    return seconds, seconds * plan["workers"] * plan["memory_mb"] / 1024 * 1.66667e-5


def is_out_of_memory(plan):
    return plan["memory_mb"] < 1000 + 6000 / plan["workers"]


@pytest.mark.parametrize(
    "surrogate",
    [SampledGaussianProcess, pytest.param(SkoptGaussianProcess, marks=pytest.mark.slow)],
)
def test_least_cost_before_a_deadline_with_plans_that_fail(surrogate):
    grid = SearchGrid([WORKERS, MEMORY])
    plans = [grid.plan(index) for index in range(len(grid))]
    deadline_s = 400.0
    solutions = [p for p in plans if job(p)[0] <= deadline_s and not is_out_of_memory(p)]
    least = min(job(p)[1] for p in solutions)
    optimizer = search(grid, surrogate=surrogate, limits={"time_s": deadline_s})
    for _ in range(16):
        plan = optimizer.ask()
        seconds, dollars = job(plan)
        if is_out_of_memory(plan):
            optimizer.tell_failure(plan, "memory")
        else:
            optimizer.tell(plan, dollars, {"time_s": seconds})
    found = optimizer.recommend()
    assert found.plan in solutions
    assert found.meets_limits > 0.9
    assert found.objective <= 1.05 * least


def test_least_time_within_a_budget_with_prior_means():
    grid = SearchGrid([WORKERS, MEMORY])
    plans = [grid.plan(index) for index in range(len(grid))]
    budget = 0.25
    best = min(job(p)[0] for p in plans if job(p)[1] <= budget)
    priors = {
        OBJECTIVE: PerformancePrior(grid, setting),
        "usd": PerformancePrior(grid, setting, lambda p: p["workers"] * p["memory_mb"]),
    }
    optimizer = search(grid, limits={"usd": budget}, priors=priors)
    for _ in range(10):
        plan = optimizer.ask()
        seconds, dollars = job(plan)
        optimizer.tell(plan, seconds, {"usd": dollars})
    assert job(optimizer.recommend().plan)[1] <= budget
    assert optimizer.recommend().objective <= 1.05 * best


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(0.001, 1e6), min_size=12, max_size=12),
    seed=st.integers(0, 1000),
)
def test_without_noise_no_plan_is_tried_twice_and_the_best_is_found(values, seed):
    grid = SearchGrid([Dimension("workers", tuple(range(1, 13)))])
    optimizer = search(grid, seed=seed)
    tried = []
    for _ in values:
        plan = optimizer.ask()
        tried.append(plan["workers"])
        optimizer.tell(plan, values[plan["workers"] - 1])
    assert sorted(tried) == list(range(1, 13))
    assert optimizer.recommend().objective == pytest.approx(min(values), rel=1e-3)
    assert optimizer.ask() == optimizer.recommend().plan


@settings(max_examples=15, deadline=None)
@given(need=st.integers(0, 5), most=st.integers(1, 9), seed=st.integers(0, 1000))
def test_plans_that_cannot_run_are_not_asked_for(need, most, seed):
    grid = SearchGrid([WORKERS, MEMORY])
    optimizer = search(grid, seed=seed)
    failed_memory, failed_workers = [], []
    for _ in range(9):
        plan = optimizer.ask()
        for memory_mb, workers in failed_memory:
            assert plan["memory_mb"] > memory_mb or plan["workers"] > workers
        assert all(plan["workers"] < workers for workers in failed_workers)
        if MEMORY.values.index(plan["memory_mb"]) < need:
            failed_memory.append((plan["memory_mb"], plan["workers"]))
            optimizer.tell_failure(plan, "memory")
        elif WORKERS.values.index(plan["workers"]) >= most:
            failed_workers.append(plan["workers"])
            optimizer.tell_failure(plan, "concurrency")
        else:
            optimizer.tell(plan, job(plan)[0])


@pytest.mark.parametrize("surrogate", [SampledGaussianProcess, SkoptGaussianProcess])
def test_the_same_seed_asks_for_the_same_plans(surrogate):
    def plans(seed):
        optimizer = search(SearchGrid([WORKERS, MEMORY]), seed=seed, surrogate=surrogate)
        asked = []
        for _ in range(6):
            asked.append(optimizer.ask())
            assert optimizer.ask() == asked[-1]
            optimizer.tell(asked[-1], job(asked[-1])[0])
        return asked

    assert plans(3) == plans(3)
    assert plans(3) != plans(4)


def test_under_noise_a_plan_may_be_measured_again_and_noise_may_be_unknown():
    grid, utility = utility_grid()
    for told in (0.2, None):
        rng = np.random.default_rng(5)
        optimizer = search(grid)
        tried = []
        for _ in range(14):
            plan = optimizer.ask()
            tried.append(grid.index(plan))
            value = np.exp(0.2 * rng.standard_normal()) / utility[tried[-1]]
            optimizer.tell(plan, value, noise=told)
        best = utility[grid.index(optimizer.recommend().plan)]
        assert best > 0.85 * utility.max()


def test_the_search_ends_when_the_gain_no_longer_pays_for_the_switch():
    grid, utility = utility_grid()
    optimizer = search(grid)
    assert optimizer.expected_gain() == float("inf")
    evaluations = 0
    while optimizer.is_worth_trying(remaining=3600, switch=20):
        plan = optimizer.ask()
        optimizer.tell(plan, 1 / utility[grid.index(plan)])
        evaluations += 1
    assert 3 < evaluations < 12
    assert optimizer.recommend().objective <= 1.01 / utility.max()
    assert optimizer.is_worth_trying(remaining=1e9, switch=1e-9)


def test_unreachable_limits_lead_to_the_plan_nearest_to_them():
    grid = SearchGrid([WORKERS, MEMORY])
    optimizer = search(grid, limits={"time_s": 1.0})
    for _ in range(14):
        plan = optimizer.ask()
        optimizer.tell(plan, job(plan)[1], {"time_s": job(plan)[0]})
    found = optimizer.recommend()
    fastest = min(job(grid.plan(index))[0] for index in range(len(grid)))
    assert found.meets_limits < 0.1
    assert optimizer.expected_gain() == float("inf")
    assert job(found.plan)[0] <= 1.3 * fastest


def test_less_memory_than_ever_ran_is_doubted_before_anything_failed():
    grid = SearchGrid([WORKERS, MEMORY])
    feasibility = Feasibility(grid)
    assert np.all(feasibility.probability() == 1)
    feasibility.ran(grid.index({"workers": 8, "memory_mb": 3538}))

    def runs(workers, memory_mb):
        return feasibility.probability()[grid.index({"workers": workers, "memory_mb": memory_mb})]

    assert runs(8, 3538) == runs(8, 8845) == runs(32, 3538) == 1
    # With fewer workers each has more to hold.
    assert 0 < runs(1, 884) < runs(8, 884) < runs(8, 1769) < 1
    alone = Feasibility(SearchGrid([WORKERS]))
    alone.ran(5)
    assert np.all(alone.probability() == 1)


@pytest.mark.parametrize("name", ["random", "smlt"])
def test_a_curve_of_fewer_plans_than_evaluations_can_be_compared(tmp_path, name):
    curve = tmp_path / "short.json"
    curve.write_text('{"first_workers": 4, "utility": [1, 3, 5, 4]}')
    assert regrets(name, read_curve(curve), 0.0, 0, 12)[-1] == 0


@pytest.mark.parametrize("name", ["random", "smlt", "smlt-prior"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("least", [0, -3])
def test_a_utility_may_be_zero_or_negative(tmp_path, name, noise, least):
    curve = tmp_path / "normalised.json"
    utility = [max(least, 5 - abs(n - 9) / 2) for n in range(1, 26)]
    curve.write_text(json.dumps({"first_workers": 1, "utility": utility}))
    regret = regrets(name, read_curve(curve), noise, 0, 12)
    assert np.isfinite(regret).all()
    if name != "random":
        assert regret[-1] < 0.1


@pytest.mark.parametrize(("first", "utility"), [(0, [1, 2]), (1, [0, 0]), (1, [-2, -2])])
def test_a_curve_without_workers_or_without_a_best_is_refused(tmp_path, first, utility):
    curve = tmp_path / "flat.json"
    curve.write_text(json.dumps({"first_workers": first, "utility": utility}))
    with pytest.raises(ValueError, match="a utility that has a best"):
        read_curve(curve)


def test_names_can_be_chosen_too():
    wires = Dimension("wire_dtype", ("fp32", "bf16", "fp16"))
    grid = SearchGrid([WORKERS, wires])
    cost = {"fp32": 1.0, "bf16": 0.6, "fp16": 0.7}
    optimizer = search(grid)
    for _ in range(12):
        plan = optimizer.ask()
        optimizer.tell(plan, 30 / plan["workers"] + cost[plan["wire_dtype"]] * plan["workers"])
    assert optimizer.recommend().plan["wire_dtype"] == "bf16"
    assert optimizer.recommend().plan["workers"] in (6, 8)


def test_objectives_may_be_negative_without_logarithms():
    grid = SearchGrid([Dimension("workers", tuple(range(1, 41)))])
    optimizer = search(grid, log=False)
    for _ in range(9):
        plan = optimizer.ask()
        optimizer.tell(plan, (plan["workers"] - 27) ** 2 / 100 - 3)
    assert optimizer.recommend().plan["workers"] in (26, 27, 28)


def test_only_allowed_plans_are_on_the_grid():
    owners = Dimension("aggregators", (1, 4, 16))
    grid = SearchGrid([WORKERS, owners], lambda p: p["aggregators"] <= p["workers"])
    assert len(grid) == 10 + 7 + 3
    with pytest.raises(ValueError, match="not on the grid"):
        grid.index({"workers": 1, "aggregators": 4})


@pytest.mark.parametrize(
    ("plan", "objective", "metrics", "message"),
    [
        ({"workers": 5, "memory_mb": 884}, 1.0, {"time_s": 1.0}, "not on the grid"),
        ({"workers": 4, "memory_mb": 884}, 0.0, {"time_s": 1.0}, "has to be positive"),
        ({"workers": 4, "memory_mb": 884}, 1.0, {"time_s": float("nan")}, "has to be"),
        ({"workers": 4, "memory_mb": 884}, 1.0, {}, "time_s is missing"),
    ],
)
def test_nonsense_is_refused(plan, objective, metrics, message):
    optimizer = search(SearchGrid([WORKERS, MEMORY]), limits={"time_s": 9.0})
    with pytest.raises(ValueError, match=message):
        optimizer.tell(plan, objective, metrics)


def test_a_kind_of_failure_that_is_not_known_is_refused():
    optimizer = search(SearchGrid([WORKERS, MEMORY]))
    with pytest.raises(ValueError, match="no kind of failure"):
        optimizer.tell_failure(optimizer.ask(), "weather")
    with pytest.raises(ValueError, match="nothing has been measured"):
        optimizer.recommend()
