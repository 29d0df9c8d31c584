"""Which plans a job has, and what the model makes of those that decide how gradients travel."""

import asyncio
from dataclasses import replace

import pytest

from smlt.control.performance_model import fit_performance
from smlt.control.plan_grid import as_setting, plan_grid, plans_of
from smlt.control.plans import Plans
from smlt.control.step_measurement import Measurement
from smlt.errors import CloudError
from smlt.messages.job import JobSpec, JobState, ResourcePlan

FIRST = ResourcePlan(workers=6, memory_mb=2000)
SPEC = JobSpec(target="t:T", virtual_workers=64, most_workers=64)
TUNED = replace(SPEC, tunes_aggregators=True, tunes_wire_dtype=True)
BOTH = replace(FIRST, aggregators=6, wire_dtype="fp32")


def test_how_gradients_travel_is_varied_on_request_only():
    plans = plans_of(plan_grid(SPEC, FIRST))
    assert FIRST in plans
    assert {(plan.aggregators, plan.wire_dtype) for plan in plans} == {(None, None)}


def test_every_plan_with_its_aggregators_is_there_once():
    plans = plans_of(plan_grid(TUNED, BOTH))
    assert BOTH in plans
    assert len(set(plans)) == len(plans)
    assert all(1 <= plan.aggregators <= plan.workers for plan in plans)
    assert {plan.wire_dtype for plan in plans} == {"fp32", "bf16"}
    of = {n: {p.aggregators for p in plans if p.workers == n} for n in (1, 2, 16, 64)}
    assert {plan.wire_dtype for plan in plans if plan.workers == 1} == {"fp32"}  # it sends nothing
    assert of == {1: {1}, 2: {1, 2}, 16: {1, 2, 4, 8, 16}, 64: {4, 8, 16, 32, 64}}


def test_what_the_user_began_with_stays_a_choice():
    own = replace(BOTH, aggregators=5, wire_dtype="fp16")
    plans = plans_of(plan_grid(TUNED, own))
    assert own in plans
    assert {plan.wire_dtype for plan in plans} == {"fp32", "bf16", "fp16"}


def test_the_performance_model_knows_of_both():
    """Fitted to one plan of each kind, it foretells others, of a law of its own terms."""

    def law(plan):
        wire = 0.5 if plan.wire_dtype == "bf16" else 1.0
        n, m = plan.workers, plan.aggregators
        return 20 / n + wire * (0.3 * (n - 1) / n * (1 + n / m) / 2 + 0.05 * (n - 1))

    plans = [
        replace(FIRST, memory_mb=1769, workers=n, aggregators=m, wire_dtype=dtype)
        for n in (2, 4, 8, 16, 32)
        for m in (1, 2, 4, 8, 16, 32)
        for dtype in ("fp32", "bf16")
        if m <= n
    ]
    fitted = [p for p in plans if (p.workers, p.aggregators) in {(4, 1), (16, 16), (32, 4)}]
    model = fit_performance(
        [Measurement(setting=as_setting(plan), step_s=law(plan)) for plan in fitted]
    )
    predicted = model.predict([as_setting(plan) for plan in plans]).step_s
    for plan, step_s in zip(plans, predicted, strict=True):
        assert step_s == pytest.approx(law(plan), rel=0.2), plan


@pytest.mark.parametrize(("workers", "aggregators"), [(16, 8), (4, 2), (2, 1), (1, 1), (5, 3)])
def test_another_number_of_workers_keeps_the_share_of_aggregators(workers, aggregators):
    plan = ResourcePlan(workers=8, memory_mb=1769, aggregators=4, wire_dtype="bf16")
    changed = plan.with_workers(workers)
    assert changed == replace(plan, workers=workers, aggregators=aggregators)


def test_workers_are_told_what_their_plan_says_of_the_exchange():
    spec = replace(SPEC, aggregators=2, wire_dtype="fp16")
    state = JobState(job_id="j", spec=spec, plan=FIRST)
    assert state.planned().spec == spec
    own = replace(state, plan=replace(FIRST, aggregators=3, wire_dtype="fp32")).planned().spec
    assert (own.aggregators, own.wire_dtype) == (3, "fp32")
    again = JobState.from_dict(state.to_dict())
    assert again == state


def test_memory_that_cannot_be_had_leaves_the_rest_of_a_plan():
    class Functions:
        async def of(self, memory_mb):
            if memory_mb != 2000:
                raise CloudError("no such size")
            return memory_mb

    plans = Plans(TUNED, Functions(), lambda text: None)
    wanted = ResourcePlan(workers=4, memory_mb=3538, aggregators=1, wire_dtype="bf16")
    assert plans.want(wanted, BOTH)
    plan, _ = asyncio.run(plans.take(BOTH))
    assert plan == replace(wanted, memory_mb=2000)
