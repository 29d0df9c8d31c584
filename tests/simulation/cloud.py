"""A Lambda service of simulated execution environments: late, twice, or never, as the seed says."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path

from smlt.control.lambda_client import LogEvent
from smlt.errors import CloudError, ConfigError, StoreError
from smlt.io.server_address import ServerAddress, server_urls
from smlt.io.server_group import ServerGroup
from smlt.io.valkey import ValkeyStore
from smlt.messages.worker import WorkerTask
from smlt.worker import numerics
from smlt.worker.host import Host
from smlt.worker.invocation import Invocation
from smlt.worker.warm import WarmMemory
from tests.simulation.loop import PROCESS, Process
from tests.simulation.network import dial

ROOT = Path(__file__).resolve().parents[2]


class Environment(Process):
    """One execution environment, in which invocations run one after the other."""

    def __init__(self, world, number: int) -> None:
        super().__init__(world.loop, f"env-{number}")
        self.world = world
        self.memory = WarmMemory()
        self.slowness = 1.0
        self.unlike = False
        """Whether this processor computes other bits."""
        self.invocation = None
        self.walk = None
        """The state that is trained here, once a step was taken."""
        self.rank = self.generation = None
        self.generations = set()
        """Its own, present and past: what was sent in one may arrive in the next."""
        self.steps = None
        """Of the state that its task holds."""
        self.moves = 0
        """Training steps that it has taken in this generation."""
        self.began = 0.0
        self._watch = self._last = None

    def notice_state(self, what: str, steps: int, bits: bytes) -> None:
        self.steps = steps
        self.moves += what == "applied"
        self.world.witness.state_seen(self, what, steps, bits)

    def start(self, request_id: str, payload) -> None:
        self.rank, self.generation = payload["rank"], payload["generation"]
        self.generations.add(self.generation)
        self.moves, self.began = 0, self.loop.now
        self.invocation = self.spawn(self._run(request_id, payload))

    async def _run(self, request_id: str, payload) -> None:
        world = self.world
        deadline = world.loop.now + world.spec.limits.function_s
        self._last = deadline
        self._watch = self.call_later(world.spec.limits.function_s, self.kill)
        host = Host(
            code_root=ROOT,
            cache_dir=world.folder,
            compute=self._compute,
            open_store=world.open_store,
            watchdog=self,
            memory=self.memory,
            clock=world.loop.time,
            nonce=lambda: f"{world.rng.getrandbits(64):x}",
            threads=world.loop.threads,
        )
        invocation = Invocation(
            WorkerTask.from_dict(payload),
            world.objects,
            host,
            request_id=request_id,
            deadline=deadline,
        )
        try:
            result = await invocation.run()
        finally:
            self._watch.cancel()
        world.witness.left(self, result)
        return result

    def bite_within(self, seconds: float, why: str) -> None:
        """Play the watchdog."""
        when = self.loop.now + seconds
        if when < self._watch.when():
            self._watch.cancel()
            self._watch = self.call_later(seconds, self.kill)

    def allow(self, seconds: float, why: str) -> None:
        self._watch.cancel()
        self._watch = self.call_later(max(self._last - self.loop.now, 0.0), self.kill)
        self.bite_within(seconds, why)

    async def _compute(self, work, *args):
        rng = self.world.rng
        if work is numerics.of_this_host and self.unlike:
            return {**work(*args), "architecture": "another"}
        before = rng.random() < 0.5
        seconds = rng.uniform(0.001, 0.03) * self.slowness
        if before:
            await asyncio.sleep(seconds)
        result = work(*args)
        if not before:
            await asyncio.sleep(seconds)
        return result


class SimulatedCloud:
    def __init__(self, world) -> None:
        self._world = world
        self._numbers = itertools.count()
        self._requests = itertools.count()
        self._warm = defaultdict(list)
        """By function: environments that wait for an event."""
        self._events = []
        self.running = []
        self.invoked = 0
        self.lost = set()
        """Ranks whose events never arrive."""
        self.logs_down_until = 0.0

    async def create_function(self, name, package, **settings):
        return "1"

    async def invoke(self, name, qualifier, payload):
        world, plan = self._world, self._world.plan
        await asyncio.sleep(world.rng.uniform(0.005, 0.05))
        if PROCESS.get().dead:
            raise asyncio.CancelledError
        hostile = world.loop.now < plan.calm_from
        if hostile and world.rng.random() < plan.throttled:
            raise CloudError("invoking f failed: TooManyRequestsException: Rate exceeded")
        request_id = f"request-{next(self._requests)}"
        self.invoked += 1
        delays = [world.rng.uniform(0.01, 0.1)]
        if hostile and world.rng.random() < plan.twice:
            delays.append(world.rng.choice([0.0, 0.2, 5.0, 30.0]))
        if hostile and world.rng.random() < plan.late:
            delays[0] += world.rng.uniform(0.5, 1.5) * world.spec.limits.start_s
        if hostile and world.rng.random() < plan.undelivered:
            delays = []
        if payload["rank"] in self.lost:
            delays = []
        for delay in delays:
            world.outside(delay, self._deliver, name, request_id, dict(payload))
        return request_id

    def _deliver(self, name, request_id, payload) -> None:
        warm, world = self._warm[name], self._world
        if world.rng.random() < world.plan.forgetful:
            warm.clear()
        environment = warm.pop() if warm else self._cold()
        self.running.append(environment)
        self._world.trace(
            environment.name, f"runs rank {payload['rank']} of generation {payload['generation']}"
        )
        environment.start(request_id, payload)
        environment.invocation.add_done_callback(
            lambda task: self._ended(name, environment, request_id, task)
        )

    def _cold(self):
        environment = Environment(self._world, next(self._numbers))
        environment.slowness = self._world.slowness()
        environment.unlike = self._world.rng.random() < self._world.plan.unlike
        environment.on_death.append(lambda: self._world.trace(environment.name, "is killed"))
        return environment

    def _ended(self, name, environment, request_id, task) -> None:
        self.running.remove(environment)
        status = ""
        if environment.dead or task.cancelled():
            status = "\tStatus: error\tError Type: Runtime.ExitError"
        elif isinstance(task.exception(), StoreError | ConfigError):
            # What cannot be told through the store is told by Lambda's log.
            status = f"\tStatus: error\tError Type: {type(task.exception()).__name__}"
        elif task.exception() is not None:
            status = "\tStatus: error\tError Type: Unhandled"
            self._world.violated(f"an invocation raised {task.exception()!r}")
        elif leftovers := [t for t in environment.tasks() if t is not task]:
            self._world.violated(f"{environment.name} left tasks running: {leftovers}")
        elif task.result().get("retired"):
            # Its process ends by itself.
            environment.kill()
            status = "\tStatus: error\tError Type: Runtime.ExitError"
        else:
            self._warm[name].append(environment)
        now = int(self._world.loop.now * 1000)
        self._events += [
            LogEvent(environment.name, now, f"START RequestId: {request_id} Version: 1"),
            LogEvent(
                environment.name,
                now,
                f"REPORT RequestId: {request_id}\tBilled Duration: 10 ms\tMemory Size: 128 MB\t"
                f"Max Memory Used: 50 MB{status}",
            ),
        ]

    async def log_events(self, name, since_ms):
        await asyncio.sleep(0.01)
        if self._world.loop.now < self.logs_down_until:
            raise CloudError("the logs cannot be read: ThrottlingException: Rate exceeded")
        return [event for event in self._events if event.timestamp_ms >= since_ms]


class _Uncarried(ValkeyStore):
    """Has every frame under a key of its own, as large ones are."""

    carries = False


def open_store(world, url: str, *, time_limit_s: float):
    """Open the product's own client of the Valkey servers on the simulated network."""

    async def connect(address, *, silence_s):
        return await dial(world.network, world.server(address.host), silence_s=silence_s)

    addresses = [ServerAddress.parse(one) for one in server_urls(url)]
    kind = ValkeyStore if world.plan.carries else _Uncarried
    servers = [kind(each, time_limit_s=time_limit_s, dial=connect) for each in addresses]
    return servers[0] if len(servers) == 1 else ServerGroup(url, servers)
