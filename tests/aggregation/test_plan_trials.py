"""The plan that does best is found by all ranks alike, whatever each of them has measured."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from smlt.aggregation.plan_trials import PlanTrials, Way, trials_of
from smlt.io.frame import Meta
from tests.aggregation.worlds import Case, world

MB = 1 << 20


def trials(elements, world_size=4, *, shard_bytes=4 * MB, aggregators=None, tries=True):
    return trials_of(
        elements, world_size, shard_bytes=shard_bytes, aggregators=aggregators, tries=tries
    )


def settle(chosen, seconds_of, steps=40):
    """Take steps of one rank, whose times a function of the plan gives; return the plans."""
    plans = []
    for _ in range(steps):
        plans.append(chosen.way.plan)
        told = chosen.told()
        chosen.learn(told)
        assert not told, "what it told was left among the step's metrics"
        chosen.took(seconds_of(plans[-1]))
    assert chosen.is_over
    return plans


@pytest.mark.parametrize("best", [4 * MB, 1 * MB, MB // 2])
def test_the_fastest_plan_is_kept(best):
    wanted = trials(25 * MB, shard_bytes=best, tries=False).way.plan
    plans = settle(trials(25 * MB), lambda plan: 1.0 if plan == wanted else 1.2)
    assert plans[-1] == wanted
    assert len(set(plans)) == 3
    assert len(set(plans[9:])) == 1, "it goes on trying"


def test_the_usual_plan_stays_where_others_are_hardly_better():
    usual = trials(25 * MB, tries=False).way.plan
    plans = settle(trials(25 * MB), lambda plan: 1.0 if plan == usual else 0.97)
    assert plans[-1] == usual


def test_the_first_step_warms_up_and_counts_for_nothing():
    usual = trials(25 * MB, tries=False).way.plan
    taken = []

    def seconds_of(plan):
        taken.append(plan)
        return 9.0 if len(taken) == 1 else 1.0 if plan == usual else 1.5

    assert settle(trials(25 * MB), seconds_of)[-1] == usual


def test_a_step_that_was_slow_by_chance_decides_nothing():
    wanted = trials(25 * MB, shard_bytes=MB, tries=False).way.plan
    taken = []

    def seconds_of(plan):
        taken.append(plan)
        by_chance = 5.0 if len(taken) in (3, 5) else 0.0
        return by_chance + (1.0 if plan == wanted else 1.3)

    assert settle(trials(25 * MB), seconds_of)[-1] == wanted


@pytest.mark.parametrize(
    ("elements", "options"),
    [
        (25 * MB, {"tries": False}),
        (25 * MB, {"world_size": 1}),
        (25_000, {}),
        (0, {}),
    ],
)
def test_where_there_is_no_choice_nothing_is_tried(elements, options):
    chosen = trials(elements, **options)
    assert chosen.is_over
    assert len(set(settle(chosen, lambda _: 1.0))) == 1


def test_a_gradient_of_some_hundred_kilobytes_may_have_one_owner():
    usual = trials(200_000, tries=False).way.plan
    assert len(usual.owners) == 4
    plans = settle(trials(200_000), lambda plan: float(len(plan.owners)))
    assert plans[-1].owners == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_all_ranks_go_over_to_one_plan_at_one_step(seed):
    """They measure different times, and learn the same from the means; no bit depends on it."""
    case = Case(seed, 3, 3000)
    sizes = (4000, 1000, 500)
    rng = random.Random(seed)
    slowness = {rank: rng.uniform(0.5, 2.0) for rank in range(3)}
    liked = rng.choice(sizes)

    async def life(rank):
        number = rank.members.rank
        chosen = PlanTrials([Way(case.plan(shard_bytes=size)) for size in sizes])
        history = []
        for step in range(14):
            plan, told = chosen.way.plan, chosen.told()
            flat = case.gradients[0, number].copy()
            result = await rank.average(
                step,
                plan,
                flat,
                weight=case.weights[0, number],
                meta=lambda shard, told=told: Meta(metrics={} if shard else told),
            )
            chosen.learn(result.metas[0].metrics)
            assert not result.metas[0].metrics
            history.append((plan, flat.tobytes()))
            dislike = abs(4 * plan.shard_elements - liked) / liked
            chosen.took(slowness[number] * (1.0 + dislike + rng.uniform(0, 0.01)))
        assert chosen.is_over
        return history

    async def run():
        async with world(3) as ranks:
            return await asyncio.gather(*map(life, ranks))

    one, *others = asyncio.run(run())
    assert all(other == one for other in others)
    assert len({plan for plan, _ in one}) == 3
    assert one[-1][0] == case.plan(shard_bytes=liked)
    assert len({bits for _, bits in one}) == 1
    mean, bound = case.mean(0)
    assert np.all(np.abs(np.frombuffer(one[0][1], np.float32) - mean) <= bound)
