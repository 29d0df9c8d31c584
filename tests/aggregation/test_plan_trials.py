"""The plan that does best is found by all ranks alike, whatever each of them has measured."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from smlt.aggregation.plan_trials import PlanTrials, Round, Way, trials_of
from smlt.io.frame import Meta
from tests.aggregation.worlds import Case, world

MB = 1 << 20


def trials(
    elements, world_size=4, *, shard_bytes=4 * MB, aggregators=None, tries=True, wire_dtype="fp32"
):
    return trials_of(
        elements,
        world_size,
        shard_bytes=shard_bytes,
        aggregators=aggregators,
        tries=tries,
        wire_dtype=wire_dtype,
    )


def ways_of(chosen, seconds_of, steps=40):
    """Take steps of one rank, whose times a function of the way gives; return the ways."""
    ways, ends = [], []
    for step in range(steps):
        ways.append(chosen.way)
        told = chosen.told()
        chosen.learn(told)
        assert not told, "what it told was left among the step's metrics"
        if chosen.took(ways[-1], seconds_of(ways[-1])):
            ends.append(step)
    assert chosen.is_over
    assert len(ends) == (len(set(ways)) > 1), "that they are over is told once"
    return ways


def settle(chosen, seconds_of):
    """Do the same where times depend on the plan alone."""
    return [way.plan for way in ways_of(chosen, lambda way: seconds_of(way.plan))]


@pytest.mark.parametrize("best", [4 * MB, 16 * MB, 8 * MB, 1 * MB, MB // 2])
def test_the_fastest_plan_is_kept(best):
    wanted = trials(25 * MB, shard_bytes=best, tries=False).way.plan
    plans = settle(trials(25 * MB), lambda plan: 1.0 if plan == wanted else 1.2)
    assert plans[-1] == wanted
    assert len(set(plans)) == 5
    assert len(set(plans[12:])) == 1, "it goes on trying"


@pytest.mark.parametrize("best", [2, 4, 8])
def test_the_concurrency_that_does_best_is_kept(best):
    """On the plan that has done best by then."""
    wanted = trials(25 * MB, shard_bytes=MB, tries=False).way.plan

    def seconds_of(way):
        return (1.0 if way.plan == wanted else 1.5) + 0.1 * (way.transfers != best)

    ways = ways_of(trials(25 * MB), seconds_of)
    assert ways[-1] == Way(wanted, best)
    assert {way.plan for way in ways if way.transfers != 4} == {wanted}


def test_few_shards_leave_no_concurrency_to_try():
    chosen = trials(200_000, 2)
    assert {way.transfers for way in ways_of(chosen, lambda _: 1.0)} == {4}


@pytest.mark.parametrize(("saves", "chosen"), [(0.5, "bf16"), (0.15, "fp32")])
@pytest.mark.parametrize("tries", [True, False])
def test_rounded_values_travel_only_where_that_saves_much(saves, chosen, tries):
    ways = ways_of(
        trials(25 * MB, tries=tries, wire_dtype="auto"),
        lambda way: 1.0 - saves * (way.dtype == "bf16"),
    )
    assert ways[-1].dtype == chosen
    assert sum(way.dtype == "bf16" for way in ways[:-10]) >= 2


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16", "fp16"])
def test_nobody_gets_another_dtype_than_he_asked_for(wire_dtype):
    ways = ways_of(trials(25 * MB, wire_dtype=wire_dtype), lambda way: 1.0 / way.transfers)
    assert {way.dtype for way in ways} == {wire_dtype}
    if wire_dtype != "fp32":  # what is owed lies with the owners, so bits would depend on times
        assert len({way.plan for way in ways}) == 1
    assert ways[-1].transfers == 8


def test_one_rank_rounds_nothing():
    assert trials(25 * MB, 1, wire_dtype="bf16").way.dtype == "fp32"


def test_what_was_found_is_told_in_words():
    chosen = trials(5_000_000)
    assert str(chosen).startswith("8 shards of 2.38 MB in fp32, 4 owners, 4 at a time")
    ways_of(chosen, lambda way: 3.0 - way.plan.shards / 40)
    assert "40 shards of 0.477 MB" in str(chosen)
    assert str(chosen).endswith("; a step in 2 s, as usual 2.8 s")
    assert len(chosen.times) == 6


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
        usual, *others = [Way(case.plan(shard_bytes=size)) for size in sizes]
        chosen = PlanTrials(usual, [Round(lambda _: others)])
        history = []
        for step in range(14):
            way, told = chosen.way, chosen.told()
            plan = way.plan
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
            chosen.took(way, slowness[number] * (1.0 + dislike + rng.uniform(0, 0.01)))
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
