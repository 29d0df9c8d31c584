"""What goes wrong in a simulated world: one method for each kind of fault of a plan."""

from __future__ import annotations

import json
import random
import ssl

from smlt.control.job import Job
from smlt.errors import SmltError
from smlt.io.keys import JobObjects
from smlt.messages.job import ResourcePlan
from smlt.messages.worker import Failure
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


DISTRUST = [
    ssl.SSLCertVerificationError("certificate has expired"),
    ssl.SSLEOFError("EOF occurred in violation of protocol"),
]
"""The one stays, the other may pass."""


class Troubles:
    """Strikes a world. What a fault does beside its kind, the number that comes with it decides."""

    def __init__(self, world) -> None:
        self._world = world
        self.rotten = set()
        """(generation, step) of checkpoints of which something was damaged."""
        self.rots_next = None
        """What is to be done to the next part of a checkpoint as it is written."""
        self.flipped = None
        """The environment in whose memory a bit was flipped."""

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

    def _flip(self, rng, victim) -> None:
        """Flip a bit in the memory of a rank that has taken a step: as soon as there is one."""
        able = [e for e in self._world.cloud.running if e.walk is not None and e.moves]
        if not able:
            self._world.outside(0.05, self._flip, rng, victim)
            return
        self.flipped = rng.choice(able)
        # Of the weights: what is flipped in a momentum of zero vanishes by itself.
        self.flipped.walk.w.view("u4")[rng.randrange(self.flipped.walk.w.size)] ^= 1 << 22

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
        seconds = rng.choice([0.5, 2.0, 10.0])
        if rng.random() < 0.3:
            # Before a word is said: by TLS.
            server.distrust = rng.choice(DISTRUST)
            self._world.network.cut_off(server)
            self._world.outside(seconds, setattr, server, "distrust", None)
            return
        server.refusal = rng.choice(REFUSALS)
        self._world.outside(seconds, setattr, server, "refusal", b"")

    def _garble(self, rng, victim) -> None:
        rng.choice(self._world.servers).garbled = rng.choice([1, 1, 2, 4])

    def _babble(self, rng, victim) -> None:
        rng.choice(self._world.servers).babble = rng.choice(
            [b"?what\r\n", b"$x\r\n", b":1\r\n", b"$900000000\r\n"]
        )

    # Of the object store

    def _objects(self, rng, victim) -> None:
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
        key = rng.choice(
            [newest, newest, rng.choice(parts), rng.choice(every), max(every, key=_place)]
        )
        objects.replace(key, self._rotten(key, objects.content(key), rng))
        if rng.random() < 0.7:
            # Or nobody would read it.
            self._world.outside(rng.uniform(0, 0.3), self._kill_all, rng, None)

    def _rot_next(self, rng, victim) -> None:
        """Damage a part of a checkpoint when it is written: whoever commits it looks at it."""
        self.rots_next = rng

    def written(self, key: str) -> None:
        """An object has been put: the disk below it may be a bad one."""
        if self.rots_next is not None and "/part-" in key:
            rng, self.rots_next = self.rots_next, None
            objects = self._world.objects
            objects.replace(key, self._rotten(key, objects.content(key), rng))

    def _rotten(self, key: str, content: bytes, rng) -> bytes | None:
        """Return what is left of an object; None where it is lost."""
        self.rotten.add(_place(key))
        hows = ["flip", "flip at the beginning", "cut short", "delete"]
        if key.endswith("/manifest.json"):
            hows += ["date back", "lack a leaf", "swap the digest"]
        how = rng.choice(hows)
        self._world.trace("world", f"{how}: {key}")
        data = bytearray(content)
        if how == "delete":
            return None
        if how == "cut short":
            return bytes(data[: rng.randrange(len(data))])
        if how.startswith("flip"):
            end = min(300, len(data)) if how.endswith("beginning") else len(data)
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
            return bytes(data)
        try:
            document = json.loads(content)
            return json.dumps(_altered(document, how)).encode()
        except ValueError:
            return b""  # it was rotten before

    # Of Lambda

    def _logs(self, rng, victim) -> None:
        self._world.cloud.logs_down_until = self._world.loop.now + rng.choice([2.0, 10.0])

    def _lose(self, rng, victim) -> None:
        """No event of one rank arrives for a while, however often it is sent."""
        rank, lost = rng.randrange(5), self._world.cloud.lost
        lost.add(rank)
        self._world.outside(rng.choice([5.0, 12.0]), lost.discard, rank)

    def _cloud_gone(self, rng, victim) -> None:
        clients = self._world.clients
        if clients.scheduler is not None and not clients.leader.dead:
            failure = Failure(kind="cloud", message="the cloud has ended")
            clients.leader.call_later(0, clients.scheduler.give_up, failure)

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


def _altered(document, how: str):
    """A manifest that is well-formed, and not that of its checkpoint."""
    if how == "date back":
        return document | {"version": 0}
    if how == "swap the digest":
        return document | {"digest": document["digest"][::-1]}
    first, *others = document["parts"]
    return document | {"parts": [first | {"leaves": first["leaves"][1:]}, *others]}


def _place(key: str) -> tuple[int, int]:
    """The generation and the step of a checkpoint's object."""
    *_, generation, step, _ = key.split("/")
    return int(generation), int(step)
