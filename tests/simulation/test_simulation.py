"""A few seeds of the simulation, in every run of the suite; `make simulate` explores many more."""

import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.simulation.network import Latency
from tests.simulation.world import Plan, World, play


@pytest.fixture(autouse=True)
def _silent():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(12))
def test_seed_keeps_every_promise(seed):
    result = play(seed)
    assert not result.violations, result.story


def test_seed_is_played_the_same_way_in_another_process():
    result = play(346)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "346"]
    replayed = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.story in replayed.stdout


def quiet(**changes):
    """A plan in which nothing goes wrong but what the test wants."""
    calm = {"faults": (), "twice": 0.0, "late": 0.0, "undelivered": 0.0, "throttled": 0.0}
    calm |= {"workers": 2, "latency": Latency(), "slow_share": 0.0}
    return replace(Plan.draw(0), **(calm | changes))


def test_rank_that_never_starts_makes_nobody_believe_that_the_client_is_gone():
    limits = replace(Plan.draw(0).limits, function_s=12.0, handover_s=9.5)
    world = World(quiet(epochs=6, limits=limits, latency=Latency(tail_share=0.1, tail=0.4)))
    world.slowness = lambda: 20.0
    world.outside(1.0, world.cloud.lost.add, 1)
    world.outside(11.0, world.cloud.lost.clear)
    result = world.run()
    # In a warm environment the first step begins before the client's lease is looked at.
    assert (result.status, result.violations) == ("completed", [])
    assert result.generations > 1


def test_store_that_is_full_for_a_moment_between_generations_does_not_end_the_job():
    world = World(quiet(faults=((0.5, "kill_all", 0),)))
    world.outside(0.6, setattr, world.server, "full", True)
    world.outside(2.2, setattr, world.server, "full", False)
    result = world.run()
    assert (result.status, result.violations) == ("completed", [])
    assert any("no memory left" in line for line in result.trace)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundreds_of_seeds_keep_every_promise():
    broken = [seed for seed in range(1000, 1300) if play(seed).violations]
    assert broken == []
