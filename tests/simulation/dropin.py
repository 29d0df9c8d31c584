"""Drop-in jobs in a simulated world: processes that know only a store, a name and their rank.

Whoever runs them starts all ranks, and all again when one has failed, whether or not the others
have noticed: processes of several runs meet at one store. Every operation that returns must have
brought what plain NumPy brings, however it was disturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, replace
from itertools import count
from unittest.mock import patch

import numpy as np

from smlt.aggregation import outbox
from smlt.aggregation.group import Group, as_bytes
from smlt.aggregation.session import Session
from smlt.aggregation.session_settings import SessionLimits, SessionSpec
from smlt.aggregation.wire import Wire
from smlt.errors import SmltError
from smlt.io.keys import SessionKeys
from tests.simulation.cloud import open_store
from tests.simulation.loop import Hang, Process, SimulatedLoop
from tests.simulation.network import Latency, Network, connect_stream
from tests.simulation.plan import CALM_S, REST_S, SERVERS
from tests.simulation.troubles import Troubles
from tests.simulation.valkey_server import ValkeyServer
from tests.simulation.world import Result

JOB = "walk"
LIMITS = SessionLimits(step_s=6.0, lease_s=3.0, heartbeat_s=0.5, store_s=3.0)
FAULTS = ("kill", "kill", "kill", "kill_all", "freeze", "cut", "partition", *sorted(SERVERS))
AGAIN_S = (0.0, 0.5, 4.0)
"""How soon after a failure all are started again."""
MISHAPS = ("late", "absent", "lags", "leaves early", "raises", "other settings", "twice")
"""What one rank of the first run does that a rank should not."""
RECORDS = (("founding",), ("founding", "end"))
GARBAGE = b"\x93\x01\x02\x03"
LATE_S = 3.0
LAG_S = LIMITS.step_s + 2.0
LARGE = 600_000
"""Elements of an array that is not exchanged as a whole."""


class MishapError(Exception):
    """The training code of one rank has a bug of its own."""


@dataclass(frozen=True)
class DropinPlan:
    """A seed in full."""

    seed: int
    spec: SessionSpec
    servers: int
    carries: bool
    rounds: int
    latency: Latency
    faults: tuple[tuple[float, str, int], ...]
    mishap: str
    """Of the first run's last rank; empty for none."""
    damaged: tuple[str, ...]
    """Records of a session before, which no rank has written: none of them costs a run."""
    outstanding: int
    """Parcels of one rank that others may have yet to fetch."""

    @property
    def harms(self) -> set[str]:
        return {kind for _, kind, _ in self.faults} | ({self.mishap} - {""})

    @classmethod
    def draw(cls, seed: int) -> DropinPlan:
        rng = random.Random(f"dropin/{seed}")
        ranks = rng.choice([1, 2, 2, 3, 4])
        spec = SessionSpec(
            world_size=ranks,
            shard_bytes=rng.choice([64, 128, 1 << 20]),
            aggregators=rng.choice([None, 1, ranks]),
            lanes=rng.choice([1, 2, 3]),
            wire_dtype=rng.choice(["fp32", "fp32", "bf16"]),
        )
        faults = [
            (
                rng.uniform(0, rng.choice([1.0, 4.0, CALM_S])),
                rng.choice(FAULTS),
                rng.getrandbits(32),
            )
            for _ in range(rng.choice([0, 1, 2, 3]))
        ]
        return cls(
            seed=seed,
            spec=spec,
            servers=rng.choice([1, 1, 2, 3]),
            carries=rng.random() < 0.5,
            rounds=rng.choice([3, 8, 20]),
            latency=rng.choice([Latency(), Latency(high=0.02), Latency(tail_share=0.01, tail=0.4)]),
            faults=tuple(sorted(faults)),
            mishap=rng.choice(MISHAPS) if rng.random() < 0.2 else "",
            damaged=rng.choice(RECORDS) if rng.random() < 0.1 else (),
            outstanding=rng.choice([1, 3, outbox.OUTSTANDING]),
        )


class DropinWorld:
    """Plays a plan to its end."""

    def __init__(self, plan: DropinPlan) -> None:
        self.plan = plan
        self.loop = SimulatedLoop(random.Random(f"order/{plan.seed}"), until=REST_S)
        self.loop.on_error = self.violated
        self.nature = Process(self.loop, "world")
        self.lines, self.violations = [], []
        self._rng = random.Random(f"session/{plan.seed}")
        self.network = Network(self.loop, plan.seed, plan.latency, self.trace)
        self.servers = [ValkeyServer(self.loop, f"valkey-{n}") for n in range(plan.servers)]
        self.loop.connector = lambda factory, host, port: connect_stream(
            self.network, self.server(host), factory
        )
        self.running = []
        """The processes of all runs that have not ended."""
        # What troubles look for in a world: whom they may befall.
        self.cloud = self.clients = self.witness = self

    @property
    def leader(self) -> Process:
        return self.running[0] if self.running else self.nature

    def lost(self, server) -> None:
        """A server has forgotten everything."""

    def server(self, host: str) -> ValkeyServer:
        return next(server for server in self.servers if server.process.name == host)

    def outside(self, delay, callback, *args):
        return self.nature.call_later(delay, callback, *args)

    def trace(self, who: str, what: str) -> None:
        self.lines.append(f"{self.loop.now:10.4f}  {who:<8} {what}")

    def violated(self, text: str) -> None:
        self.violations.append(f"at {self.loop.now:.4f} s: {text}")

    def run(self) -> Result:
        asyncio.set_event_loop(None)
        runs = 0
        try:
            with patch.object(outbox, "OUTSTANDING", self.plan.outstanding):
                runs = self.loop.run_until_complete(self.loop.create_task(self._play()))
        except Hang as error:
            self.violated(f"{error}; {self.loop.who_waits()}")
        finally:
            self.loop.bury(list(self.running))
        status = "completed" if runs else "unfinished"
        return Result(self.plan.seed, self.violations, self.lines, status, runs)

    async def _play(self) -> int:
        troubles = Troubles(self)
        for when, kind, number in self.plan.faults:
            self.outside(when, troubles.strike, kind, number)
        if self.plan.damaged:
            await Process(self.loop, "before").spawn(self._damage())
        rng = random.Random(f"again/{self.plan.seed}")
        for number in count(1):
            if await self._all_ranks(number):
                break
            if not self.plan.harms:
                self.violated("a run failed, although nothing has gone wrong")
            await asyncio.sleep(rng.choice(AGAIN_S))
        own = asyncio.current_task()
        while any(task is not own for task in self.loop.unfinished()):  # noqa: ASYNC110 - of all
            await asyncio.sleep(0.5)
        for server in self.servers:
            if server.unbounded():
                self.violated(f"keys would never expire: {server.unbounded()}")
        return number

    async def _all_ranks(self, run: int) -> bool:
        """Start every rank; return when all are done, or as soon as one has failed."""
        tasks = []
        ranks = list(range(self.plan.spec.world_size))
        mishap = self.plan.mishap if run == 1 else ""
        if mishap == "twice":
            ranks.append(ranks[-1])
        for rank in ranks:
            process = Process(self.loop, f"run-{run}/{rank}")
            task = process.spawn(self._life(rank, mishap if rank == ranks[-1] else ""))
            self.running.append(process)
            task.add_done_callback(lambda _, process=process: self.running.remove(process))
            tasks.append(task)
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(not self._succeeded(task) for task in done):
                return False
        return True

    def _succeeded(self, task) -> bool:
        if task.cancelled():
            return False
        error = task.exception()
        if error is None:
            return True
        # What an error says of a process is another thing in every run of the seed.
        self.trace(task.process.name, f"fails: {type(error).__name__}")
        if not isinstance(error, SmltError | MishapError):
            self.violated(f"{task.process.name} raised {error!r}")
        return False

    async def _damage(self) -> None:
        keys = SessionKeys(JOB)
        with contextlib.suppress(SmltError):
            async with open_store(self, self._url, time_limit_s=LIMITS.store_s) as store:
                for name in self.plan.damaged:
                    await store.renew(getattr(keys, name)(1), GARBAGE, ttl_s=REST_S)

    @property
    def _url(self) -> str:
        return ",".join(f"redis://{server.process.name}:6379/0" for server in self.servers)

    def _session(self, store, rank: int, spec: SessionSpec) -> Session:
        clock, draw = self.loop.time, self._rng.getrandbits
        return Session(store, JOB, rank, spec, LIMITS, clock=clock, draw=draw)

    async def _life(self, rank: int, mishap: str) -> None:
        if mishap == "absent":
            return
        if mishap == "late":
            await asyncio.sleep(LATE_S)
        spec = self.plan.spec
        if mishap == "other settings":
            spec = replace(spec, shard_bytes=spec.shard_bytes * 2)
        plan = self.plan
        async with (
            open_store(self, self._url, time_limit_s=LIMITS.store_s) as store,
            self._session(store, rank, spec) as session,
        ):
            await session.formed()
            async with Group(session, threads=self.loop.threads) as group:
                rounds = _Rounds(self, group, plan)
                for number in range(plan.rounds):
                    if number == plan.rounds // 2:
                        if mishap == "leaves early":
                            return
                        await self._stumble(mishap)
                    await rounds.take(number)
                await group.barrier()()

    async def _stumble(self, mishap: str) -> None:
        if mishap == "lags":
            await asyncio.sleep(LAG_S)
        elif mishap == "raises":
            raise MishapError("a bug of the training code")


class _Rounds:
    """One rank's operations, and what each must bring: all ranks know what every rank gives."""

    def __init__(self, world: DropinWorld, group: Group, plan: DropinPlan) -> None:
        self._world, self._group, self._plan = world, group, plan
        self._ranks = range(group.world_size)
        self._wire = Wire.of(plan.spec.wire_dtype, 40, group.world_size)

    async def take(self, number: int) -> None:
        rng = random.Random(f"{self._plan.seed}/{number}")
        kinds = rng.sample(
            ["average", "fold", "gather", "scatter", "broadcast", "ring", "swap", "agree"], 2
        )
        if rng.random() < 0.05:
            kinds.append("large")
        # Numbered in the same order on all ranks, and then under way together.
        operations = [getattr(self, f"_{kind}")(number) for kind in kinds]
        await _together(operations)

    def _given(self, number: int, rank: int, size: int = 40):
        """Small whole numbers: exact in any order, and in 16 bits."""
        return (np.arange(size) * (rank + 3) + number * 7) % 9 - 4

    def _check(self, what: str, found, wanted) -> None:
        if not np.array_equal(found, wanted):
            self._world.violated(f"rank {self._group.rank} got a wrong {what}")

    async def _operation(self, operation, what, found, wanted) -> None:
        await operation()
        self._check(what, found, wanted)

    def _average(self, number: int):
        flat = self._given(number, self._group.rank).astype(np.float32)
        total = sum(self._given(number, rank) for rank in self._ranks).astype(np.float32)
        scale = 2.0 ** len(self._ranks)
        operation = self._group.reduce_flat(
            flat, weight=scale / len(self._ranks), what="average", wire=self._wire, lane=0
        )
        return self._operation(operation, "average", flat, total * np.float32(1 / scale))

    def _fold(self, number: int):
        array = self._given(number, self._group.rank).astype(np.int64)
        total = sum(self._given(number, rank) for rank in self._ranks)
        return self._operation(self._group.all_reduce(array, "sum"), "sum", array, total)

    def _gather(self, number: int):
        own = as_bytes(self._given(number, self._group.rank).astype(np.int8))
        every = np.zeros((len(self._ranks), own.size), np.uint8)
        wanted = [self._given(number, rank).astype(np.int8).view(np.uint8) for rank in self._ranks]
        operation = self._group.all_gather(own, list(every), what="gather")
        return self._operation(operation, "gathering", every, wanted)

    def _scatter(self, number: int):
        rank = self._group.rank
        pieces = [self._given(number + to, rank).astype(np.int32) for to in self._ranks]
        out = np.zeros(40, np.int32)
        wanted = sum(self._given(number + rank, other) for other in self._ranks)
        operation = self._group.reduce_scatter(pieces, out, "sum")
        return self._operation(operation, "scattered sum", out, wanted)

    def _large(self, number: int):
        array = self._given(number, self._group.rank, LARGE).astype(np.int32)
        total = sum(self._given(number, rank, LARGE) for rank in self._ranks)
        return self._operation(self._group.all_reduce(array, "sum"), "large sum", array, total)

    def _swap(self, number: int):
        rank = self._group.rank
        outgoing = [as_bytes(self._given(number + to, rank).astype(np.int8)) for to in self._ranks]
        every = np.zeros((len(self._ranks), outgoing[0].size), np.uint8)
        wanted = [
            self._given(number + rank, other).astype(np.int8).view(np.uint8)
            for other in self._ranks
        ]
        operation = self._group.all_to_all(outgoing, list(every), what="swap")
        return self._operation(operation, "swapping", every, wanted)

    def _agree(self, number: int):
        return self._group.agree(b"layout %d" % number, lambda theirs: f"theirs is {theirs}")()

    def _broadcast(self, number: int):
        root = number % len(self._ranks)
        wanted = as_bytes(self._given(number, root).astype(np.int8))
        data = wanted.copy() if self._group.rank == root else np.zeros_like(wanted)
        operation = self._group.broadcast(data, root, what="broadcast")
        return self._operation(operation, "broadcast", data, wanted)

    async def _ring(self, number: int) -> None:
        if len(self._ranks) == 1:
            return
        rank, n = self._group.rank, len(self._ranks)
        before = (rank - 1) % n
        own = as_bytes(self._given(number, rank).astype(np.int8))
        out = np.zeros_like(own)
        sending = self._group.send(f"ring-{number}", own, (rank + 1) % n)
        await _together([sending, self._group.receive([(f"ring-{number}", before)], out)])
        self._check(
            "message", out, self._given(number, (rank - 1) % n).astype(np.int8).view(np.uint8)
        )


async def _together(operations) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for operation in operations:
                tasks.create_task(operation)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def play(seed: int) -> Result:
    """Play what a seed stands for, and return what did not hold."""
    return DropinWorld(DropinPlan.draw(seed)).run()
