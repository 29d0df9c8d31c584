"""One job in a simulated world, drawn from a seed: everything in it, from its birth to its rest."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from smlt.io.memory_contents import CONTENTS
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.weights import save_weights
from tests.simulation.clients import Clients
from tests.simulation.cloud import SimulatedCloud, open_store
from tests.simulation.loop import Hang, Process, SimulatedLoop
from tests.simulation.network import Network, connect_stream
from tests.simulation.object_store import SimulatedObjects
from tests.simulation.plan import DATA, REST_S, START, Plan
from tests.simulation.troubles import Troubles
from tests.simulation.valkey_server import ValkeyServer
from tests.simulation.walk import first_weights
from tests.simulation.witness import Witness

JOB = "walk"
_names = itertools.count()
_scratch = Path(tempfile.gettempdir())


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

    @property
    def digest(self) -> str:
        """Equal for two runs in which the same happened, in the same order, at the same times."""
        return hashlib.sha256(self.story.encode()).hexdigest()


class World:
    """Plays a plan to its end. Every check speaks up by ``violated``."""

    job_id = JOB

    def __init__(self, plan: Plan) -> None:
        self.plan, self.spec = plan, plan.spec
        self.rng = random.Random(plan.seed)
        self.name = f"simulated-{next(_names)}"
        self.folder = _scratch
        self.loop = SimulatedLoop(random.Random(f"order/{plan.seed}"), until=REST_S)
        self.loop.on_error = self.violated
        self.nature = Process(self.loop, "world")
        self.lines = []
        self.violations = []
        self.objects_down_until = 0.0
        self.kept = []
        """Keys in the object store when all is over."""
        self.network = Network(self.loop, plan.seed, plan.latency, self.trace)
        self.servers = [ValkeyServer(self.loop, f"valkey-{n}") for n in range(plan.servers)]
        self.parameters_url = ",".join(f"redis://{s.process.name}:6379/0" for s in self.servers)
        self.loop.connector = lambda factory, host, port: connect_stream(
            self.network, self.server(host), factory
        )
        self.objects = SimulatedObjects(self)
        self.cloud = SimulatedCloud(self)
        self.clients = Clients(self)
        self.troubles = Troubles(self)
        self.witness = Witness(self)
        for server in self.servers:
            server.on_write = self.witness.written

    # What the world is to those in it

    def server(self, host: str) -> ValkeyServer:
        return next(server for server in self.servers if server.process.name == host)

    def open_store(self, url, *, time_limit_s):
        return open_store(self, url, time_limit_s=time_limit_s)

    def outside(self, delay, callback, *args):
        """Do something that no process of the job does."""
        return self.nature.call_later(delay, callback, *args)

    def blocked_s(self, process) -> float:
        return max(0.0, self.network.healed(process) - self.loop.now)

    def slowness(self) -> float:
        return self.rng.choice([5.0, 20.0]) if self.rng.random() < self.plan.slow_share else 1.0

    def trace(self, who: str, what: str) -> None:
        self.lines.append(f"{self.loop.now:10.4f}  {who:<8} {what}")

    def violated(self, text: str) -> None:
        self.violations.append(f"at {self.loop.now:.4f} s: {text}")

    # Its life

    def run(self) -> Result:
        """Play the plan, and say what did not hold."""
        outcome = None
        asyncio.set_event_loop(None)
        try:
            outcome = self.loop.run_until_complete(self.loop.create_task(self._play()))
        except Hang as error:
            self.violated(f"{error}; {self.loop.who_waits()}")
        finally:
            self.loop.bury({task.process: None for task in self.loop.unfinished() if task.process})
            CONTENTS.pop(self.name, None)
        return Result(
            self.plan.seed,
            self.violations,
            self.lines,
            outcome.status if outcome else "",
            max(self.witness.drawn, default=0),
        )

    async def _prepare(self) -> None:
        """Put what a user brings along into the object store."""
        plain = MemoryObjectStore(self.name)
        await plain.put(DATA, b'{"files": {}}')
        await save_weights(plain, START, {"w": first_weights(self.plan.size, given=True)})

    async def _play(self):
        await self._prepare()
        for when, kind, number in self.plan.faults:
            self.outside(when, self.troubles.strike, kind, number)
        outcome = await self.clients.lead()
        if outcome is not None:
            self.trace("world", f"the job has ended: {outcome.status}: {outcome.message}")
            self.witness.judge(outcome)
        await self._until_rest()
        self.kept = self.objects.keys()
        await self.witness.check_what_is_kept(outcome)
        await self.witness.remove_job()
        return outcome

    async def _until_rest(self) -> None:
        """Whatever the client's end was, workers must leave by themselves, and soon."""
        own = asyncio.current_task()
        while any(task is not own for task in self.loop.unfinished()):  # noqa: ASYNC110 - of all
            await asyncio.sleep(0.5)


def play(seed: int) -> Result:
    """Play what a seed stands for, and return what did not hold."""
    return World(Plan.draw(seed)).run()
