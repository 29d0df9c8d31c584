"""One job in a simulated world, drawn from a seed: what goes wrong in it, and what must hold."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.task_scheduler import TaskScheduler
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.memory import _CONTENTS, MemoryObjectStore
from smlt.io.patient_objects import PatientObjects
from smlt.io.weights import read_weights
from smlt.messages import ClientHold, JobSpec, Limits, Position, ResourcePlan
from tests.simulation import walk
from tests.simulation.cloud import SimulatedCloud, open_store
from tests.simulation.loop import Deadlock, Process, SimulatedLoop
from tests.simulation.network import Latency, Network, connect_stream
from tests.simulation.object_store import SimulatedObjects
from tests.simulation.valkey_server import ValkeyServer

JOB = "walk"
CALM_S = 25.0
"""From here on nothing new goes wrong."""
REST_S = 400.0
"""By here the job must have ended, and everything be at rest."""
FAULTS = (
    "kill", "kill", "kill", "kill_all", "freeze", "cut", "partition", "restart", "evict", "full",
    "objects", "stop", "client_dies",
)  # fmt: skip
_names = itertools.count()
_scratch = Path(tempfile.gettempdir())
_prices = lru_cache(read_prices)
_trajectory = lru_cache(walk.trajectory)


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    workers: int
    aggregators: int | None
    size: int
    shard_bytes: int
    epochs: int
    checkpoint_s: float
    limits: Limits
    latency: Latency
    slow_share: float
    twice: float
    late: float
    undelivered: float
    throttled: float
    calm_from: float
    heir_after: float | None
    """Seconds after its client's death when another one comes; None: nobody does."""
    faults: tuple[tuple[float, str, int], ...]
    """When, what, and a number that decides the rest."""

    @classmethod
    def draw(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        workers = rng.choice([1, 2, 2, 3, 3, 4, 5])
        limits = Limits(
            lease_s=3.0,
            heartbeat_s=0.5,
            start_s=8.0,
            load_s=15.0,
            step_s=6.0,
            save_s=8.0,
            objects_s=90.0,
            client_lease_s=2.0,
            orphan_s=2.0,
            store_s=3.0,
            hold_s=2.0,
            function_s=rng.choice([900.0, 900.0, 12.0]),
            handover_s=rng.choice([2.0, 9.5]),
        )
        faults = tuple(
            sorted(
                (rng.choice([rng.uniform(0, 2), rng.uniform(0, CALM_S)]), rng.choice(FAULTS),
                 rng.getrandbits(32))
                for _ in range(rng.choice([0, 1, 1, 2, 2, 3]))
            )
        )  # fmt: skip
        return cls(
            seed=seed,
            workers=workers,
            aggregators=rng.choice([None, 1, workers]),
            size=rng.choice([16, 48, 100]),
            shard_bytes=rng.choice([64, 128, 1 << 20]),
            epochs=rng.choice([2, 4, 6]),
            checkpoint_s=rng.choice([60.0, 0.3, 0.1]),
            limits=limits,
            latency=rng.choice([Latency(), Latency(high=0.02), Latency(tail_share=0.01, tail=0.4)]),
            slow_share=rng.choice([0.0, 0.0, 0.3]),
            twice=rng.choice([0.0, 0.0, 0.4]),
            late=rng.choice([0.0, 0.0, 0.1]),
            undelivered=rng.choice([0.0, 0.0, 0.1]),
            throttled=rng.choice([0.0, 0.0, 0.2]),
            calm_from=CALM_S,
            faults=faults,
            heir_after=rng.choice([None, 0.0, 1.0, 20.0]),
        )

    @property
    def is_peaceful(self) -> bool:
        """Whether nothing happens that could end a generation before its time."""
        return not (self.faults or self.late or self.undelivered)

    @property
    def spares_the_ranks(self) -> bool:
        """Whether every rank lives until it has saved, however long the object store is out."""
        return self.harms <= {"objects", "stop"} and self.limits.function_s > REST_S

    @property
    def harms(self) -> set[str]:
        return {kind for _, kind, _ in self.faults}


@dataclass
class Result:
    """What became of a seed."""

    seed: int
    violations: list[str]
    trace: list[str] = field(repr=False)
    status: str = ""
    generations: int = 0

    @property
    def story(self) -> str:
        return "\n".join([*self.trace, *(f"VIOLATED: {text}" for text in self.violations)])


class World:
    """Plays a plan to its end. Every check speaks up by ``violated``."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.name = f"simulated-{next(_names)}"
        self.folder = _scratch
        self.rng = random.Random(f"world-{plan.seed}")
        self.loop = SimulatedLoop(random.Random(f"order-{plan.seed}"), until=REST_S)
        self.lines = []
        self.violations = []
        self.objects_down_until = 0.0
        self.network = Network(self.loop, plan.seed, plan.latency, self.trace)
        self.server = ValkeyServer(self.loop)
        self.server.on_write = self.written
        self.loop.connector = lambda factory, host, port: connect_stream(
            self.network, self.server, factory
        )
        self.spec = JobSpec(
            target="tests.simulation.walk:Walk",
            params={"size": plan.size},
            epochs=plan.epochs,
            batch_size=16,
            seed=plan.seed % 7,
            shard_bytes=plan.shard_bytes,
            aggregators=plan.aggregators,
            checkpoint_s=plan.checkpoint_s,
            limits=plan.limits,
        )
        self.expected = _trajectory(plan.size, 40, 16, plan.epochs, plan.seed % 7)
        self.objects = SimulatedObjects(self)
        self.cloud = SimulatedCloud(self)
        self.client = Process(self.loop, "client")
        self.scheduler = None
        self.drawn = {}
        self.leavings = {}
        self.saved = {}
        self.reached = {}
        self.objects_failed = False

    # What the world does to the job

    def open_store(self, url, *, time_limit_s):
        return open_store(self, time_limit_s=time_limit_s)

    def outside(self, delay, callback, *args):
        """Do something that no process of the job does."""
        return self.server.process.call_later(delay, callback, *args)

    def blocked_s(self, process) -> float:
        return max(0.0, self.network._healed.get(process, 0.0) - self.loop.now)

    def slowness(self) -> float:
        return self.rng.choice([5.0, 20.0]) if self.rng.random() < self.plan.slow_share else 1.0

    def strike(self, kind: str, number: int) -> None:
        rng = random.Random(number)
        alive = [env for env in self.cloud.running if not env.dead]
        victim = rng.choice(alive) if alive else None
        self.trace("world", f"{kind} {victim.name if victim else ''}")
        if kind == "kill" and victim:
            # At any await point from here on, not only at those that a timer hits.
            victim.crash_at = victim.callbacks + rng.randint(0, 400)
        elif kind == "kill_all":
            for env in alive:
                env.kill()
        elif kind == "freeze" and victim:
            victim.freeze()
            self.outside(rng.choice([1.0, 5.0, 20.0]), victim.thaw)
        elif kind == "cut":
            self.network.cut(victim if victim and rng.random() < 0.8 else self.client)
        elif kind == "partition":
            target = victim if victim and rng.random() < 0.8 else self.client
            self.network.partition(target, rng.choice([0.5, 2.0, 6.0]))
        elif kind == "restart":
            self.server.forget()
            self.server.up = False
            self.network.cut_off(self.server)
            self.outside(rng.choice([0.01, 1.0, 2.0]), self._start_server)
        elif kind == "evict":
            self.server.evict(rng, rng.choice([0.1, 0.5, 1.0]))
        elif kind == "full":
            self.server.full = True
            self.outside(rng.choice([0.5, 4.0]), self._make_room)
        elif kind == "objects":
            self.objects_failed = True
            self.objects_down_until = self.loop.now + rng.choice([0.5, 3.0, 5.0, 20.0, 60.0])
        elif kind == "stop" and self.scheduler is not None:
            self.client.spawn(self._stop())
        elif kind == "client_dies":
            self.client.kill()

    def _start_server(self) -> None:
        self.server.up = True

    def _make_room(self) -> None:
        self.server.full = False

    async def _stop(self) -> None:
        await self.scheduler.request_stop()

    # What is looked at while it happens

    def trace(self, who: str, what: str) -> None:
        self.lines.append(f"{self.loop.now:10.4f}  {who:<8} {what}")

    def violated(self, text: str) -> None:
        self.violations.append(f"at {self.loop.now:.4f} s: {text}")

    def state_seen(self, env, what: str, steps: int, bits: bytes) -> None:
        self.trace(env.name, f"rank {env.rank} of generation {env.generation} {what} step {steps}")
        self.reached[env.generation] = max(steps, self.reached.get(env.generation, 0))
        if steps >= len(self.expected) or bits != self.expected[steps]:
            self.violated(f"{env.name} has other weights at step {steps} than an undisturbed run")

    def written(self, process, command) -> None:
        """A write has reached the parameter store."""
        generation = getattr(process, "generation", None)
        key = command[3] if command[0] == b"EVAL" else command[1]
        written = int(key.split(b"{", 1)[1].split(b"}", 1)[0].rsplit(b":", 1)[1])
        if generation is not None and written not in process.generations:
            self.violated(f"{process.name}, of generation {generation}, wrote {key.decode()}")
        if command[0] == b"XADD" and b"left" in command:
            reasons = int(command[command.index(b"reasons") + 1])
            self.trace(process.name, f"says that it leaves, reasons {reasons}")
            if reasons:
                self.leavings.setdefault(generation, set()).add((process.steps, reasons))
                if len(self.leavings[generation]) > 1:
                    self.violated(f"ranks agreed to stop, but differ: {self.leavings[generation]}")
        if command[0] == b"EVAL" and key.endswith(b":abort"):
            self.trace(process.name, f"calls for an abort: {command[6][:160]!r}")
            if b"handover" in command[6]:
                if process.steps <= self._parent_step(generation):
                    self.violated(f"{process.name} cuts a generation that has gained nothing")
            elif self.plan.is_peaceful:
                self.violated(f"{process.name} aborts, although nothing has gone wrong")

    def _parent_step(self, generation) -> int:
        parent = self.drawn[generation]
        return parent["step"] if parent else 0

    def stored(self, process, key: str) -> None:
        """An object has been written."""
        if key == JobObjects(JOB).state:
            state = self.objects.document(key)
            number = state["generation"]
            if number and number not in self.drawn:
                self.drawn[number] = state["parent"]
                self.trace(process.name, f"draws generation {number} from {state['parent']}")
                self._check_loss(number - 1, state["parent"])
            elif number and state["parent"] != self.drawn[number] and state["status"] == "running":
                self.violated(f"the parent of generation {number} has changed")
        elif key.endswith("/manifest.json"):
            document = self.objects.document(key)
            self.trace(process.name, f"commits step {document['step']}")
            there = set(self.objects.keys())
            missing = [part["key"] for part in document["parts"] if part["key"] not in there]
            if missing:
                self.violated(f"{key} is committed without {missing}")

    def left(self, env, result) -> None:
        self.trace(env.name, f"returns {result}")
        if result["status"] == "left" and result["failure"] is None and env.steps is not None:
            self.saved.setdefault(env.generation, {})[env.name] = env.steps

    def _check_loss(self, generation: int, parent) -> None:
        """Where a rank has left in peace, or no rank has died, its state is not lost."""
        held = max(self.saved.get(generation, {}).values(), default=0)
        if self.plan.spares_the_ranks:
            held = max(held, self.reached.get(generation, 0))
        at = parent["step"] if parent else 0
        if at < held:
            self.violated(f"generation {generation} was left at step {held}, and goes on from {at}")

    # The whole

    def run(self) -> Result:
        """Play the plan, and say what did not hold."""
        outcome = None
        asyncio.set_event_loop(None)
        try:
            outcome = self.loop.run_until_complete(self.loop.create_task(self._play()))
        except TimeoutError as error:
            if "at rest" not in str(error):
                raise
            self.violated(f"{error}; {self._who_waits()}")
        except Deadlock as error:
            self.violated(str(error))
        finally:
            self._bury()
            _CONTENTS.pop(self.name, None)
        return Result(
            self.plan.seed,
            self.violations,
            self.lines,
            outcome.status if outcome else "",
            max(self.drawn, default=0),
        )

    def _who_waits(self) -> str:
        return "; ".join(
            f"{task.process.name if task.process else '-'}: {task.get_coro().__qualname__}"
            for task in self.loop.unfinished()
        )

    def _bury(self) -> None:
        """End what is left, so that Python does not complain of tasks that are never finished."""
        for process in {t.process: None for t in self.loop.unfinished() if t.process}:
            process.kill()
        for task in self.loop.unfinished():
            task.cancel()
        self.loop._until = float("inf")
        for _ in range(100):
            if not self.loop.unfinished():
                break
            self.loop.run_until_complete(asyncio.sleep(0.1))
        self.loop.close()

    async def _play(self):
        for when, kind, number in self.plan.faults:
            self.outside(when, self.strike, kind, number)
        outcome = None
        try:
            outcome = await self._led()
        except Exception as error:
            self.violated(f"the scheduler raised {error!r}")
        if outcome is not None:
            self.trace("client", f"ends: {outcome.status}: {outcome.message}")
            self._judge(outcome)
        await self._until_rest()
        await self._check_checkpoints(outcome)
        return outcome

    async def _led(self):
        """Have the job led to its end: by its first client, or by one that takes over."""
        found = self._created()
        while True:
            try:
                return await self.client.spawn(self._client(found))
            except asyncio.CancelledError:
                if not self.client.dead:
                    raise
                self.trace("world", f"the {self.client.name} is dead")
            if self.plan.heir_after is None or not self.objects.keys(JobObjects(JOB).state):
                return None
            await asyncio.sleep(self.plan.heir_after)
            self.client = Process(self.loop, "heir")
            found = self._taken_over()

    def patient(self):
        """The object store as a client uses it."""
        return PatientObjects(
            self.objects,
            limit_s=self.plan.limits.objects_s,
            on_wait=lambda what, why: what and self.trace("client", f"waits for {what}: {why}"),
        )

    async def _created(self):
        plan = ResourcePlan(workers=self.plan.workers, memory_mb=128)
        return await Job.create(self.patient(), JOB, self.spec, plan, _hold("client"))

    async def _taken_over(self):
        job = await Job.load(self.patient(), JOB)
        if job.state.status == "running":
            await job.take_over(_hold("heir"), clock=self.loop.time)
            self.trace("heir", "takes over")
        return job

    async def _client(self, found):
        limits = self.plan.limits
        job = await found

        async def function(memory_mb):
            return Function(name="f", version="1", memory_mb=memory_mb)

        async with self.open_store("", time_limit_s=limits.store_s) as store:
            self.scheduler = TaskScheduler(
                job,
                objects=self.patient(),
                store=store,
                cloud=self.cloud,
                functions=Functions(function),
                invocations=_Quiet(Path(), self.loop.time, _prices()),
                feed=ProgressFeed(Progress(), _Events(self), self.loop.time),
                objects_url=self.objects.url,
                parameters_url="simulated://",
                clock=self.loop.time,
            )
            return await self.scheduler.run()

    def _judge(self, outcome) -> None:
        harms = self.plan.harms
        if outcome.status == "completed":
            return
        if outcome.status == "stopped" and harms & {"stop", "partition", "client_dies"}:
            return
        kind = outcome.failure.kind if outcome.failure else ""
        excused = (
            (kind == "space" and harms & {"full", "evict"})
            or (kind == "unreachable" and harms & {"partition", "restart"})
            or ("no memory left" in outcome.message and "full" in harms)
        )
        if not excused:
            self.violated(f"the job ended as {outcome.status}: {outcome.message}")

    async def _until_rest(self) -> None:
        """Whatever the client's end was, workers must leave by themselves, and soon."""
        own = asyncio.current_task()
        while any(task is not own for task in self.loop.unfinished()):  # noqa: ASYNC110 - of all
            await asyncio.sleep(0.5)
        if self.server.unbounded():
            self.violated(f"keys would never expire: {self.server.unbounded()}")

    async def _check_checkpoints(self, outcome) -> None:
        """Every manifest that is left leads to the state of its step; so does the model."""
        plain = MemoryObjectStore(self.name)
        keys = self.objects.keys(JobObjects(JOB).checkpoints)
        for key in (key for key in keys if key.endswith("/manifest.json")):
            document = self.objects.document(key)
            at = Position(generation=document["generation"], step=document["step"])
            state = await checkpoint.read(plain, JOB, at)
            bits = state.tensors["w"].data.tobytes() + state.tensors["m"].data.tobytes()
            if bits != self.expected[at.step]:
                self.violated(f"{key} holds other weights than an undisturbed run")
        if outcome is not None and outcome.status == "completed":
            found = await read_weights(plain, JobObjects(JOB).model)
            if found["w"].data.tobytes() != self.expected[-1][: 4 * self.plan.size]:
                self.violated("the model has other weights than an undisturbed run")


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


def play(seed: int) -> Result:
    """Play what a seed stands for, and return what did not hold."""
    return World(Plan.draw(seed)).run()
