"""What goes wrong in a simulated world: one method for each kind of fault of a plan."""

from __future__ import annotations

import json
import random

from smlt.control.job import Job
from smlt.errors import SmltError
from smlt.io.keys import JobObjects
from smlt.messages import ResourcePlan
from tests.simulation.loop import Process
from tests.simulation.plan import SIZES_MB

REFUSALS = [
    b"-READONLY You can't write against a read only replica.",
    b"-LOADING Valkey is loading the dataset in memory",
    b"-MASTERDOWN Link with MASTER is down",
    b"-ERR max number of clients reached",
    b"-MOVED 3999 127.0.0.1:6381",
    b"-NOPERM this user has no permissions",
    b"-ERR something else",
]


class Troubles:
    """Strikes a world. What a fault does beside its kind, the number that comes with it decides."""

    def __init__(self, world) -> None:
        self._world = world
        self.rotten = set()
        """(generation, step) of checkpoints of which something was damaged."""
        self.objects_failed = False

    def strike(self, kind: str, number: int) -> None:
        world, rng = self._world, random.Random(number)
        alive = [environment for environment in world.cloud.running if not environment.dead]
        victim = rng.choice(alive) if alive else None
        world.trace("world", f"{kind} {victim.name if victim else ''}")
        getattr(self, f"_{kind}")(rng, victim)

    def _someone(self, rng, victim) -> Process:
        return victim if victim and rng.random() < 0.8 else self._world.clients.leader

    # Of workers

    def _kill(self, rng, victim) -> None:
        if victim:
            # At any await point from here on, not only at those that a timer hits.
            victim.crash_at = victim.callbacks + rng.randint(0, 400)

    def _kill_all(self, rng, victim) -> None:
        for environment in list(self._world.cloud.running):
            environment.kill()

    def _freeze(self, rng, victim) -> None:
        if victim:
            victim.freeze()
            self._world.outside(rng.choice([1.0, 5.0, 20.0]), victim.thaw)

    # Of the network

    def _cut(self, rng, victim) -> None:
        self._world.network.cut(self._someone(rng, victim))

    def _partition(self, rng, victim) -> None:
        self._world.network.partition(self._someone(rng, victim), rng.choice([0.5, 2.0, 6.0]))

    # Of one of the servers of the parameter store

    def _restart(self, rng, victim) -> None:
        server = rng.choice(self._world.servers)
        self._world.witness.lost(server)
        server.forget()
        server.up = False
        self._world.network.cut_off(server)
        self._world.outside(rng.choice([0.01, 1.0, 2.0]), setattr, server, "up", True)

    def _evict(self, rng, victim) -> None:
        rng.choice(self._world.servers).evict(rng, rng.choice([0.1, 0.5, 1.0]))

    def _full(self, rng, victim) -> None:
        server = rng.choice(self._world.servers)
        server.full = True
        self._world.outside(rng.choice([0.5, 4.0]), setattr, server, "full", False)

    def _hang(self, rng, victim) -> None:
        server = rng.choice(self._world.servers)
        server.process.freeze()
        self._world.outside(rng.choice([0.5, 2.0, 10.0]), server.process.thaw)

    def _refuse(self, rng, victim) -> None:
        server = rng.choice(self._world.servers)
        server.refusal = rng.choice(REFUSALS)
        self._world.outside(rng.choice([0.5, 2.0, 10.0]), setattr, server, "refusal", b"")

    def _garble(self, rng, victim) -> None:
        rng.choice(self._world.servers).garbled = rng.choice([1, 1, 2, 4])

    def _babble(self, rng, victim) -> None:
        rng.choice(self._world.servers).babble = rng.choice(
            [b"?what\r\n", b"$x\r\n", b":1\r\n", b"$900000000\r\n"]
        )

    # Of the object store

    def _objects(self, rng, victim) -> None:
        self.objects_failed = True
        until = self._world.loop.now + rng.choice([0.5, 3.0, 5.0, 20.0, 60.0])
        self._world.objects_down_until = until

    def _rot(self, rng, victim) -> None:
        """Damage an object of a checkpoint: of the newest that is committed, mostly."""
        objects, folder = self._world.objects, JobObjects(self._world.job_id).checkpoints
        manifests = [key for key in objects.keys(folder) if key.endswith("/manifest.json")]
        if not manifests:
            return
        newest = max(manifests, key=_place)
        parts = objects.keys(newest.removesuffix("manifest.json"))
        every = [key for key in objects.keys(folder) if key.count("/") == newest.count("/")]
        key = rng.choice([newest, rng.choice(parts), rng.choice(every), max(every, key=_place)])
        self.rotten.add(_place(key))
        data = bytearray(objects.content(key))
        how = rng.choice(["flip", "cut short", "delete", "date back"])
        if how == "date back" and key in manifests:
            data = json.dumps({**json.loads(data), "version": 0}).encode()
        elif how == "cut short":
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        self._world.trace("world", f"{how}: {key}")
        objects.replace(key, None if how == "delete" else bytes(data))
        if rng.random() < 0.5:
            # Or nobody would read it.
            self._world.outside(rng.uniform(0, 0.3), self._kill_all, rng, None)

    # Of Lambda

    def _logs(self, rng, victim) -> None:
        self._world.cloud.logs_down_until = self._world.loop.now + rng.choice([2.0, 10.0])

    def _lose(self, rng, victim) -> None:
        """No event of one rank arrives for a while, however often it is sent."""
        rank, lost = rng.randrange(5), self._world.cloud.lost
        lost.add(rank)
        self._world.outside(rng.choice([5.0, 12.0]), lost.discard, rank)

    # Of clients, and what people ask of them

    def _client_dies(self, rng, victim) -> None:
        self._world.clients.leader.kill()

    def _client_freezes(self, rng, victim) -> None:
        leader = self._world.clients.leader
        leader.freeze()
        self._world.outside(rng.choice([1.0, 3.0, 10.0]), leader.thaw)
        if rng.random() < 0.7:
            self._world.outside(rng.choice([0.1, 1.0, 4.0]), self._world.clients.attach)

    def _rival(self, rng, victim) -> None:
        self._world.clients.attach()

    def _plan(self, rng, victim) -> None:
        plan = ResourcePlan(workers=rng.randint(1, 5), memory_mb=rng.choice(SIZES_MB))
        self._of_the_leader(lambda scheduler: scheduler.request_plan(plan))

    def _stop(self, rng, victim) -> None:
        self._of_the_leader(lambda scheduler: scheduler.request_stop())

    def _stop_now(self, rng, victim) -> None:
        self._of_the_leader(lambda scheduler: scheduler.stop_now())

    def _of_the_leader(self, ask) -> None:
        clients = self._world.clients
        if clients.scheduler is not None and not clients.leader.dead:
            clients.leader.spawn(_quietly(ask(clients.scheduler)))

    def _stop_outside(self, rng, victim) -> None:
        self._ask_from_outside(now=False)

    def _stop_now_outside(self, rng, victim) -> None:
        self._ask_from_outside(now=True)

    def _ask_from_outside(self, *, now: bool) -> None:
        world = self._world

        async def ask():
            job = await Job.load(world.clients.patient(), world.job_id)
            if job.state.status == "running":
                await job.request_stop(now=now)

        if world.objects.keys(JobObjects(world.job_id).state):
            Process(world.loop, "asker").spawn(_quietly(ask()))


async def _quietly(request) -> None:
    """A request may fail as everything may; what it was to bring about is checked elsewhere."""
    try:
        await request
    except SmltError:
        return


def _place(key: str) -> tuple[int, int]:
    """The generation and the step of a checkpoint's object."""
    *_, generation, step, _ = key.split("/")
    return int(generation), int(step)
