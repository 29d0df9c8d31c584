"""Lambda functions that train on simulated time: thousands of them, without a process of their own.

The scheduler meets what it would meet: invocations that are throttled, cold and warm starts,
claims, leases, reports, stragglers, functions that die or come to their 15 minutes, checkpoints,
logs and bills. Only the training is a law of how long a step takes.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from smlt.control.job import Job
from smlt.control.lambda_client import LogEvent
from smlt.errors import CloudError
from smlt.io.keys import GenerationKeys, JobObjects
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.messages.job import JobState, ResourcePlan
from smlt.messages.worker import RankState, StepFlag, StepRecord, WorkerReport, WorkerTask

Law = Callable[[ResourcePlan, int], float]
"""Seconds of a step, by plan and number of the step."""

_REPORT_S = 0.5
_FOREVER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How functions behave: medians in seconds, and how far they spread."""

    cold_s: float = 1.5
    warm_s: float = 0.05
    load_s: float = 3.0
    """From the roster to the first step, in a cold environment; a warm one takes a tenth."""
    save_s: float = 1.0
    spread: float = 0.3
    """Standard deviation of the logarithm of each start."""
    noise: float = 0.03
    """Likewise of a step."""
    straggling: float = 0.002
    """Probability of a step whose slowest rank takes three times as long."""
    deaths_per_hour: float = 0.005
    """Of one function."""
    concurrency: int = 1000
    """More functions at a time are throttled."""


@dataclass(slots=True)
class _Started:
    """One invocation that runs."""

    rank: int
    request_id: str
    memory_mb: int
    began: float
    warm: bool
    over: bool = False


@dataclass(slots=True)
class _Roster:
    """One generation's functions, and what its control stream has said."""

    started: dict[int, _Started] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    stop: StepFlag = field(default_factory=lambda: StepFlag(0))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: bool = False
    follower: asyncio.Task[None] | None = None


class SimulatedFleet:
    """The Lambda service of a simulated job. Its clock is the loop's."""

    def __init__(
        self,
        objects: MemoryObjectStore,
        store: MemoryParameterStore,
        law: Law,
        weather: Weather,
        rng: random.Random,
        *,
        steps: int,
        batches: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Take a job of so many steps; ``batches`` are steps and what each has of samples."""
        self.deaths = self.throttled = 0
        self._objects = objects
        self._store = store
        self._law = law
        self._weather = weather
        self._rng = rng
        self._steps = steps
        self._batches = list(batches)
        self._ids = itertools.count()
        self._running = 0
        self._warm: Counter[int] = Counter()
        self._times_ms: list[int] = []
        self._events: list[LogEvent] = []
        self._rosters: dict[int, _Roster] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def create_function(self, name: str, package: bytes, **settings: Any) -> str:
        return "1"

    async def invoke(self, name: str, qualifier: str, payload: dict[str, Any]) -> str:
        """Start a function; its size is the end of its name."""
        if self._running >= self._weather.concurrency:
            self.throttled += 1
            raise CloudError("invoking f failed: TooManyRequestsException: Rate exceeded")
        self._running += 1
        task, memory_mb = WorkerTask.from_dict(payload), int(name.rpartition("-")[2])
        warm = self._warm[memory_mb] > 0
        self._warm[memory_mb] -= warm
        request_id = f"request-{next(self._ids)}"
        started = _Started(task.rank, request_id, memory_mb, self._now, warm)
        self._log(request_id, f"START RequestId: {request_id} Version: 1")
        self._spawn(self._claim(task, started))
        return request_id

    async def log_events(self, name: str, since_ms: int) -> list[LogEvent]:
        return self._events[bisect.bisect_left(self._times_ms, since_ms) :]

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _some(self, median: float) -> float:
        return median * self._rng.lognormvariate(0, self._weather.spread)

    async def _claim(self, task: WorkerTask, started: _Started) -> None:
        weather = self._weather
        await asyncio.sleep(self._some(weather.warm_s if started.warm else weather.cold_s))
        keys = GenerationKeys(task.job_id, task.generation)
        roster = self._rosters.get(task.generation)
        if roster is None:
            roster = self._rosters[task.generation] = _Roster()
            roster.follower = asyncio.current_task()
            self._spawn(self._follow(keys, roster))
            self._spawn(self._train(task, keys, roster))
        roster.started[task.rank] = started
        # One renewal for ever instead of one a second: a death takes the lease away.
        lease = RankState(rank=task.rank, state="training")
        await self._store.renew(
            keys.lease(task.rank), msgpack.packb(lease.to_dict()), ttl_s=_FOREVER_S
        )
        await self._store.first(
            keys.claim(task.rank),
            started.request_id.encode(),
            guard=keys.marker,
            ttl_s=_FOREVER_S,
            stream=keys.control,
            fields={
                "event": b"claimed",
                "rank": b"%d" % task.rank,
                "request": started.request_id.encode(),
                "stream": started.request_id.encode(),
            },
        )

    async def _follow(self, keys: GenerationKeys, roster: _Roster) -> None:
        """Hear on the control stream what all ranks hear."""
        after, gone = {keys.control: "0-0"}, 0
        while not gone or gone < len(roster.ranks):
            for notice in await self._store.read(after, wait_s=60.0):
                after[notice.stream] = notice.id
                event = notice.fields["event"]
                if event == b"roster":
                    [packed] = await self._store.values([keys.roster])
                    roster.ranks = msgpack.unpackb(packed)["ranks"]
                elif event == b"stop":
                    roster.stop |= StepFlag(int(notice.fields["reason"]))
                elif event == b"abort":
                    roster.aborted = True
                elif event == b"left":
                    gone += 1
                    continue
                roster.changed.set()
            if roster.aborted and all(s.over for s in roster.started.values()):
                return

    async def _train(self, task: WorkerTask, keys: GenerationKeys, roster: _Roster) -> None:
        """Take steps until something ends the generation, then save and leave."""
        while not roster.ranks and not roster.aborted:
            roster.changed.clear()
            await roster.changed.wait()
        state: JobState = (await Job.load(self._objects, task.job_id)).state
        first = step = state.parent.step if state.parent else 0
        reasons = StepFlag(0)
        if not roster.aborted:
            step, reasons = await self._steps_of(keys, roster, state, first)
        if step > first:
            await asyncio.sleep(self._some(self._weather.save_s))
            manifest = JobObjects(task.job_id).manifest(task.generation, step)
            await self._objects.put(manifest, b"{}")
        if reasons & StepFlag.TARGET:
            await self._objects.put(JobObjects(task.job_id).model, b"model")
        for rank, started in roster.started.items():
            if not started.over:
                if rank in roster.ranks:
                    fields = {"event": b"left", "rank": b"%d" % rank, "reasons": b"%d" % reasons}
                    await self._store.announce(keys.control, fields, guard=keys.marker)
                self._end(started)
        self._rosters.pop(task.generation, None)

    async def _steps_of(
        self, keys: GenerationKeys, roster: _Roster, state: JobState, step: int
    ) -> tuple[int, StepFlag]:
        started = [roster.started[rank] for rank in roster.ranks]
        plan = ResourcePlan(workers=len(started), memory_mb=started[0].memory_mb)
        load_s = self._weather.load_s * (0.1 if all(s.warm for s in started) else 1.0)
        limits = state.spec.limits
        hand_over = min(s.began for s in started) + limits.function_s - limits.handover_margin_s
        death = self._now + self._rng.expovariate(
            max(1e-12, self._weather.deaths_per_hour * plan.workers / 3600)
        )
        await self._until(roster, self._now + self._some(load_s))
        report = WorkerReport(rank=0, kind="plan", total_steps=self._steps, batches=self._batches)
        await self._report(keys, report)
        records: list[dict[str, Any]] = []
        told = self._now
        while not roster.aborted:
            seconds = self._law(plan, step) * self._rng.lognormvariate(0, self._weather.noise)
            if self._rng.random() < self._weather.straggling:
                seconds *= 3
            ends = self._now + seconds
            if ends > death:
                await self._until(roster, death)
                await self._kill(keys, roster)
                await self._until(roster, self._now + limits.step_s)
                return step, StepFlag(0)
            await self._until(roster, ends)
            if roster.aborted:
                return step, StepFlag(0)
            step += 1
            size = self._batch(step) or state.spec.batch_size
            record = StepRecord(
                step=step, epoch=0, loss=1.0, samples=size, seconds=seconds, batch_size=size
            )
            records.append(record.to_dict())
            reasons = roster.stop
            if step >= self._steps:
                reasons |= StepFlag.TARGET
            if self._now > hand_over:
                reasons |= StepFlag.HANDOVER
            if reasons or self._now - told > _REPORT_S:
                await self._report(keys, WorkerReport(rank=0, kind="steps", steps=records))
                records, told = [], self._now
            if reasons:
                return step, reasons
        return step, StepFlag(0)

    def _batch(self, step: int) -> int:
        """The samples of a step, counted from 1; 0 where all have the job's."""
        for steps, size in self._batches:
            if step <= steps:
                return size
            step -= steps
        return 0

    async def _until(self, roster: _Roster, when: float) -> None:
        """Wait until then, but not after an abort."""
        while self._now < when and not roster.aborted:
            roster.changed.clear()
            try:
                async with asyncio.timeout_at(when):
                    await roster.changed.wait()
            except TimeoutError:
                return

    async def _report(self, keys: GenerationKeys, report: WorkerReport) -> None:
        packed = bytes(msgpack.packb(report.to_dict()))
        await self._store.announce(keys.reports, {"report": packed}, guard=keys.marker)

    async def _kill(self, keys: GenerationKeys, roster: _Roster) -> None:
        self.deaths += 1
        victim = roster.started[self._rng.choice(roster.ranks)]
        await self._store.discard([keys.lease(victim.rank)])
        self._end(victim, "\tStatus: error\tError Type: Runtime.ExitError")

    def _end(self, started: _Started, status: str = "") -> None:
        started.over = True
        self._running -= 1
        self._warm[started.memory_mb] += not status
        billed_ms = round((self._now - started.began) * 1000)
        self._log(
            started.request_id,
            f"REPORT RequestId: {started.request_id}\tBilled Duration: {billed_ms} ms\t"
            f"Memory Size: {started.memory_mb} MB\tMax Memory Used: 500 MB{status}",
        )

    def _log(self, stream: str, line: str) -> None:
        self._times_ms.append(round(self._now * 1000))
        self._events.append(LogEvent(stream, self._times_ms[-1], line))
