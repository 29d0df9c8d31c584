"""One job with everything it needs, on one loop: real scheduler and workers over memory stores."""

import asyncio
import hashlib
import itertools
import json
import time

import numpy as np

from smlt.control.event_log import EventLog
from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.task_scheduler import TaskScheduler
from smlt.io.keys import JobObjects
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.weights import read_weights
from smlt.messages.job import JobSpec, Limits, ResourcePlan
from smlt.worker.sample_order import SampleOrder
from tests.control.one_loop_cloud import OneLoopCloud

TASK = '''
import numpy as np
import smlt

class Drift(smlt.Task):
    """Weights that take a long walk: any lost or doubled step shows in their bits."""

    def __init__(
        self, fail_at: int = -1, fail_times: int = 99, nan_at: int = -1, decays: bool = False
    ):
        self.fail_at, self.fail_times, self.nan_at = fail_at, fail_times, nan_at
        self.decays = decays

    def dataset(self, data, split):
        return list(np.linspace(-1, 1, 96, dtype=np.float32))

    def initialize(self, seed, total_steps):
        rng = np.random.default_rng(seed)
        self.w = rng.normal(size=200).astype(np.float32)
        self.m = np.zeros(200, np.float32)
        self.steps = np.zeros((), np.int64)
        self.total = total_steps if self.decays else 0

    def state(self):
        return {"w": self.w, "m": self.m, "steps": self.steps}

    def weights(self):
        return {"w": self.w}

    def gradients(self, samples, into, ready):
        step = int(self.steps)
        if step == self.fail_at and Drift.failures < self.fail_times:
            Drift.failures += 1
            raise RuntimeError(f"boom at {step}")
        noise = np.random.default_rng(step).normal(size=200).astype(np.float32)
        for x in samples:
            into["w"] += np.sin(self.w * x) + 0.1 * noise * x
        loss = float(sum(np.cos(self.w * x).sum() for x in samples))
        return smlt.Contribution(float("nan") if step == self.nan_at else loss)

    def apply(self, mean, present):
        self.m *= 0.9
        self.m += mean["w"]
        self.w -= 0.05 * self.m
        if self.total:
            self.w *= self.steps / self.total
        self.steps += 1

    failures = 0

class Scored(Drift):
    """Is best at its first evaluation."""

    def measure(self, samples):
        return {"score": smlt.Metric(-float(self.steps) * len(samples), len(samples))}
'''

QUICK = Limits(
    lease_s=2.0, heartbeat_s=0.05, start_s=10, step_s=10, save_s=10, store_s=2, client_lease_s=2
)
LIMIT_S = 60
names = itertools.count()


class Town:
    """One job with everything it needs."""

    def __init__(self, folder, **settings):
        (folder / "drift.py").write_text(TASK)
        (folder / "logs").mkdir()
        self.name = f"town-{next(names)}"
        self.objects = MemoryObjectStore(self.name)
        self.store = MemoryParameterStore(self.name)
        self.cloud = OneLoopCloud(folder, folder, settings.pop("function_s", 1e6))
        self.folder = folder
        self.workers = settings.pop("workers", 3)
        settings = {"epochs": 6, "batch_size": 16, "seed": 5, "limits": QUICK} | settings
        self.spec = JobSpec(**{"target": "drift.py:Drift"} | settings)
        self.progress = Progress()
        self.manager = None
        self.more_data = None

    async def scheduler(self):
        plan = ResourcePlan(workers=self.workers, memory_mb=128)
        return self.leader(await Job.create(self.objects, "drift", self.spec, plan))

    def leader(self, job):
        return TaskScheduler(
            job,
            objects=self.objects,
            store=self.store,
            cloud=self.cloud,
            functions=Functions(self.function),
            invocations=Invocations(self.folder / "logs"),
            feed=ProgressFeed(self.progress, EventLog(self.folder / "events.jsonl")),
            objects_url=self.objects.url,
            parameters_url=self.store.url,
            manager=self.manager,
            more_data=self.more_data,
        )

    async def function(self, memory_mb):
        name = f"f-{memory_mb}"
        version = await self.cloud.create_function(name, b"")
        return Function(name=name, version=version, memory_mb=memory_mb)

    def events(self, kind):
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    async def run(self, *beside):
        scheduler = await self.scheduler()
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(task(scheduler)) for task in beside]
            outcome = await scheduler.run()
            for task in tasks:
                task.cancel()
        await asyncio.gather(*self.cloud.running, return_exceptions=True)
        return outcome

    async def weights(self):
        found = await read_weights(self.objects, JobObjects("drift").model)
        return hashlib.sha256(found["w"].data).hexdigest()

    async def until(self, condition):
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < limit, "the condition never came"
            await asyncio.sleep(0.001)


def in_one_process(steps=36):
    """What the job computes, as a plain loop in float64 over whole batches."""
    x = np.linspace(-1, 1, 96, dtype=np.float32).astype(np.float64)
    order = SampleOrder(96, 16, 16, seed=5)
    w = np.random.default_rng(5).normal(size=200).astype(np.float32).astype(np.float64)
    m = np.zeros(200)
    for step in range(steps):
        rows = order.batch(*divmod(step, 6), range(16))
        noise = np.random.default_rng(step).normal(size=200).astype(np.float32)
        mean = np.mean([np.sin(w * x[row]) + 0.1 * noise * x[row] for row in rows], axis=0)
        m = 0.9 * m + mean
        w = w - 0.05 * m
    return w
