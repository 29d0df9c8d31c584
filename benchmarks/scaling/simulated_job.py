"""One whole job on simulated time: the real scheduler and resource manager, a simulated fleet."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling import virtual_time
from benchmarks.scaling.fleet import Law, SimulatedFleet, Weather
from smlt.control.event_log import EventLog
from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.resource_manager import ResourceManager
from smlt.control.step_cost import StepCost
from smlt.control.task_scheduler import TaskScheduler
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.messages.job import JobSpec, Limits, ResourcePlan

_names = itertools.count()
_HEARTBEATS_PER_S = 500  # more workers are looked at less often: their leases are for ever here


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """How a simulated job went."""

    status: str
    message: str
    steps: int
    time_s: float
    cost_usd: float
    generations: int
    deaths: int
    throttled: int
    decisions: list[str]
    notices: list[str]
    plan: ResourcePlan
    """The last one."""
    client_cpu_s: float


def play(
    law: Law,
    first: ResourcePlan,
    steps: int,
    *,
    seed: int = 0,
    weather: Weather | None = None,
    batch_size: int = 1024,
    virtual_workers: int = 1024,
    batches: Sequence[tuple[int, int]] = (),
    **goals: Any,
) -> Played:
    """Run a job of so many steps to its end and return how it went.

    ``batches`` are numbers of steps, with the samples of each; ``goals`` are fields of a JobSpec:
    ``deadline_s``, ``budget_usd``, ``adapt``, ``most_workers``.
    """
    most = max(first.workers, goals.get("most_workers", 1))
    heartbeat_s = max(1.0, most / _HEARTBEATS_PER_S)
    spec = JobSpec(
        target="t:T",
        steps=steps,
        batch_size=max(batch_size, virtual_workers),
        virtual_workers=virtual_workers,
        limits=Limits(heartbeat_s=heartbeat_s, lease_s=10 * heartbeat_s, start_s=120.0),
        **{"most_workers": most} | goals,
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="smlt-simulated-") as folder:
        playing = _play(Path(folder), spec, law, first, seed, weather or Weather(), batches)
        played = virtual_time.run(playing)
    return Played(**played, client_cpu_s=time.process_time() - began)


async def _play(
    folder: Path,
    spec: JobSpec,
    law: Law,
    first: ResourcePlan,
    seed: int,
    weather: Weather,
    batches: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    clock = asyncio.get_running_loop().time
    name = f"simulated-{next(_names)}"
    objects, store = MemoryObjectStore(name), MemoryParameterStore(name, clock)
    rng = random.Random(seed)
    fleet = SimulatedFleet(
        objects, store, law, weather, rng, steps=spec.steps or 0, batches=batches
    )
    (folder / "logs").mkdir()
    events = folder / "events.jsonl"
    feed = ProgressFeed(Progress(), EventLog(events), clock)
    prices = read_prices()
    invocations = Invocations(folder / "logs", clock, prices=prices)
    goals = spec.adapt or spec.deadline_s is not None or spec.budget_usd is not None
    cost = StepCost(prices=prices)
    manager = ResourceManager(spec, first, cost, notice=feed.notice, seed=seed) if goals else None
    job = await Job.create(objects, name, spec, first)
    scheduler = TaskScheduler(
        job,
        objects=objects,
        store=store,
        cloud=fleet,
        functions=Functions(_function),
        invocations=invocations,
        feed=feed,
        objects_url=objects.url,
        parameters_url=store.url,
        manager=manager,
        clock=clock,
    )
    outcome = await scheduler.run()
    forget(name)
    lines = map(json.loads, events.read_text().splitlines())
    return {
        "status": outcome.status,
        "message": outcome.message,
        "steps": feed.progress.step,
        "time_s": clock(),
        "cost_usd": invocations.bill()[1],
        "generations": outcome.generations,
        "deaths": fleet.deaths,
        "throttled": fleet.throttled,
        "decisions": [event["reason"] for event in lines if event["event"] == "plan"],
        "notices": feed.progress.notices,
        "plan": job.state.plan,
    }


async def _function(memory_mb: int) -> Function:
    return Function(name=f"f-{memory_mb}", version="1", memory_mb=memory_mb)
