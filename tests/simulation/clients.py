"""Who leads a simulated job: its first client, and those that attach to it or resume it."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path

from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.resource_manager import Decision
from smlt.control.task_scheduler import TaskScheduler
from smlt.errors import CloudError, ConfigError, JobHeldError
from smlt.io.keys import JobObjects
from smlt.io.patient_objects import PatientObjects
from smlt.messages.job import ClientHold, ResourcePlan
from smlt.messages.worker import StepFlag
from tests.simulation.loop import PROCESS, Process
from tests.simulation.plan import SIZES_MB

_prices = lru_cache(read_prices)
ANEW = {"status": "running", "stop_requested": False, "stop_now": False, "ending": ""}
"""What a client that resumes a job changes of its state."""


class Clients:
    """Every client there is. ``leader`` is the one that last began."""

    def __init__(self, world) -> None:
        self._world = world
        self.leader = Process(world.loop, "client")
        self.scheduler = None
        self._leading = {}
        """By the task of each client that has not ended: its process."""
        self._news = asyncio.Event()
        self._resumable = world.plan.resumes
        self._count = 0

    async def lead(self):
        """Have the job led to its end, by whomever; None when nobody is left to do it."""
        world, plan = self._world, self._world.plan
        self._begin(self.leader, self._created())
        outcome = None
        while self._leading:
            await self._news.wait()
            self._news.clear()
            for task in [task for task in self._leading if task.done()]:
                process = self._leading.pop(task)
                ended = self._result(process, task)
                if ended is not None:
                    if outcome is not None and outcome.status != "stopped":
                        world.violated(f"{process.name} has ended a job that had ended before")
                    outcome = ended
            if self._leading:
                continue
            if outcome is None and plan.heir_after is not None and self._exists:
                await asyncio.sleep(plan.heir_after)
                self.attach()
            elif outcome is not None and outcome.status == "stopped" and self._resumable:
                self._resumable = False
                self._enter("resumer", self._resumed())
        return outcome

    def attach(self) -> None:
        """Have somebody try to take the job over."""
        if self._exists:
            self._enter("heir", self._taken_over())

    def patient(self):
        """The object store as a client uses it."""
        world, name = self._world, PROCESS.get().name if PROCESS.get() else "client"
        return PatientObjects(
            world.objects,
            limit_s=world.plan.limits.objects_s,
            on_wait=lambda what, why: what and world.trace(name, f"waits for {what}: {why}"),
        )

    @property
    def _exists(self) -> bool:
        return bool(self._world.objects.keys(JobObjects(self._world.job_id).state))

    def _enter(self, name: str, found) -> None:
        self._count += 1
        self.leader = Process(self._world.loop, f"{name}-{self._count}")
        self.scheduler = None
        self._begin(self.leader, found)

    def _begin(self, process: Process, found) -> None:
        task = process.spawn(self._client(found))
        self._leading[task] = process
        task.add_done_callback(lambda _: self._news.set())

    def _result(self, process: Process, task):
        world = self._world
        try:
            return task.result()
        except asyncio.CancelledError:
            if not process.dead:
                world.violated(f"{process.name} was cancelled")
            world.trace("world", f"the {process.name} is dead")
        except JobHeldError as error:
            world.trace(process.name, f"is told: {error}")
        except ConfigError as error:
            world.trace(process.name, f"gives up: {error}")
            if "refuse" not in world.plan.harms:
                world.violated(f"{process.name} gave up: {error}")
        except Exception as error:
            world.violated(f"the scheduler of {process.name} raised {error!r}")
        return None

    async def _created(self):
        plan = ResourcePlan(workers=self._world.plan.workers, memory_mb=SIZES_MB[0])
        world = self._world
        return await Job.create(self.patient(), world.job_id, world.spec, plan, _hold("client"))

    async def _taken_over(self):
        job = await Job.load(self.patient(), self._world.job_id)
        if job.state.status != "running":
            return None
        await job.take_over(_hold(PROCESS.get().name), clock=self._world.loop.time)
        self._world.trace(PROCESS.get().name, "takes over")
        if not job.state.stop_requested:
            await self.patient().delete(JobObjects(self._world.job_id).model)
        return job

    async def _resumed(self):
        world, objects = self._world, self.patient()
        job = await Job.load(objects, world.job_id)
        await job.take_over(_hold("resumer"), clock=world.loop.time, **ANEW)
        await objects.delete(JobObjects(world.job_id).model)
        world.trace("resumer", "goes on with the job")
        return job

    async def _client(self, found):
        world = self._world
        job = await found
        if job is None:
            return None
        clock, objects = world.loop.time, self.patient()
        async with world.open_store(
            world.parameters_url, time_limit_s=world.spec.limits.store_s
        ) as store:
            scheduler = TaskScheduler(
                job,
                objects=objects,
                store=store,
                cloud=world.cloud,
                functions=Functions(self._function),
                invocations=_Quiet(Path(), clock, _prices()),
                feed=ProgressFeed(Progress(), _Events(world), clock),
                objects_url=world.objects.url,
                parameters_url=world.parameters_url,
                manager=DrawnManager(world) if world.plan.managed else None,
                clock=clock,
            )
            if PROCESS.get() is self.leader:
                self.scheduler = scheduler
            return await scheduler.run()

    async def _function(self, memory_mb: int) -> Function:
        await asyncio.sleep(self._world.rng.uniform(0.001, 0.2))
        if memory_mb == self._world.plan.refused_mb:
            raise CloudError(f"no function of {memory_mb} MB could be made: quota exceeded")
        return Function(name=f"f{memory_mb}", version="1", memory_mb=memory_mb)


class DrawnManager:
    """Wants something now and then, as a resource manager may, for no reason at all."""

    def __init__(self, world) -> None:
        self._world = world

    def begin(self, plan, now) -> None:
        pass

    def end(self, now) -> None:
        pass

    def step(self, record, now) -> None:
        pass

    def work(self, report) -> None:
        pass

    def evaluation(self, seconds) -> None:
        pass

    def decide(self, standing, now):
        world = self._world
        rng = world.rng
        if now > world.plan.calm_from or rng.random() > world.plan.managed:
            return None
        if rng.random() < 0.9:
            return Decision(reason="another plan may be faster", plan=self._some_plan())
        at_once = rng.random() < 0.5
        return Decision(reason="the budget is spent", stop=StepFlag.BUDGET, at_once=at_once)

    def failed(self, kind):
        return self._some_plan() if self._world.rng.random() < 0.5 else None

    def _some_plan(self):
        rng = self._world.rng
        return ResourcePlan(workers=rng.randint(1, 5), memory_mb=rng.choice(SIZES_MB))


def _hold(name: str) -> ClientHold:
    return ClientHold(host=name, pid=1, since=0.0)


class _Quiet(Invocations):
    """Writes no files."""

    def take(self, events):
        for event in events:
            self._attribute(event)


class _Events:
    def __init__(self, world) -> None:
        self._world = world

    def write(self, event, **fields):
        if event not in ("step", "generation"):
            self._world.trace("client", f"notes {event} {str(fields)[:160]}")
