"""Workers that do not train: each holds a connection of its own, claims, beats, reports, leaves.

    python -m benchmarks.scaling.socket_workers STORE_URL < PAYLOADS

A line of standard input is the payload of one invocation. The process ends with its last worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
from typing import Any

import msgpack

from smlt.io.keys import GenerationKeys
from smlt.io.stores import open_parameter_store
from smlt.messages.worker import PhaseRecord, RankState, StepRecord, WorkerReport, WorkerTask

BEAT_S = 1.0
# All are in one process, which may have to wait for a processor.
LEASE_S = 60.0
STEP_S = 0.5
REPORT_S = 0.5
TTL_S = 3600.0
PHASES = dict.fromkeys(("compute", "UL-shard", "DL-shard", "UL-aggr", "DL-grad", "wait"), 0.1)


class Fleet:
    def __init__(self, url: str, workers: int) -> None:
        self._url = url
        self._phases_s = max(REPORT_S, 0.01 * workers)  # as the trainer does
        self.stopped = asyncio.Event()

    async def follow(self, keys: GenerationKeys) -> None:
        """Wait for the end of the generation, for all workers together."""
        after = {keys.control: "0-0"}
        async with open_parameter_store(self._url, time_limit_s=60) as store:
            while not self.stopped.is_set():
                for notice in await store.read(after, wait_s=0.5):
                    after[notice.stream] = notice.id
                    if notice.fields["event"] in (b"stop", b"abort"):
                        self.stopped.set()

    async def work(self, task: WorkerTask) -> None:
        keys = GenerationKeys(task.job_id, task.generation)
        async with open_parameter_store(self._url, time_limit_s=60) as store:
            # One log stream each; nothing here asks what is in it.
            own = b"worker-%d" % task.rank
            claim = {"event": b"claimed", "rank": b"%d" % task.rank, "request": own, "stream": own}
            await store.first(
                keys.claim(task.rank),
                os.urandom(8),
                guard=keys.marker,
                ttl_s=TTL_S,
                stream=keys.control,
                fields=claim,
            )
            beating = asyncio.create_task(self._beat(store, keys, task.rank))
            await self._report(store, keys, task.rank)
            beating.cancel()
            left = {"event": b"left", "rank": b"%d" % task.rank, "reasons": b"8"}
            await store.announce(keys.control, left, guard=keys.marker)

    async def _beat(self, store: Any, keys: GenerationKeys, rank: int) -> None:
        await asyncio.sleep(random.random() * BEAT_S)
        state = RankState(rank=rank, state="training", step=1, pid=os.getpid())
        while True:
            await store.renew(keys.lease(rank), msgpack.packb(state.to_dict()), ttl_s=LEASE_S)
            await store.values([keys.marker, keys.client])
            await asyncio.sleep(BEAT_S)

    async def _report(self, store: Any, keys: GenerationKeys, rank: int) -> None:
        """Report steps, if of the first rank, and phases, as a trainer does; until the end."""
        step, every_s = 0, REPORT_S if rank == 0 else self._phases_s
        with_phases = 0.0
        await self._wait(random.random() * every_s)
        while not self.stopped.is_set():
            taken = range(step + 1, step + 1 + round(every_s / STEP_S))
            step = taken[-1]
            with_phases += every_s
            if rank == 0:
                steps = [
                    StepRecord(step=n, epoch=0, loss=1.0, samples=4096, seconds=STEP_S)
                    for n in taken
                ]
                await self._tell(store, keys, rank, "steps", steps)
            if with_phases >= self._phases_s:
                with_phases = 0.0
                last = range(step + 1 - round(self._phases_s / STEP_S), step + 1)
                phases = [PhaseRecord(step=n, seconds=STEP_S, phases=PHASES) for n in last if n > 0]
                await self._tell(store, keys, rank, "phases", phases)
            await self._wait(every_s)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            pass

    async def _tell(self, store: Any, keys: GenerationKeys, rank: int, kind: str, of: Any) -> None:
        report = WorkerReport(rank=rank, kind=kind, steps=[record.to_dict() for record in of])
        fields = {"report": bytes(msgpack.packb(report.to_dict()))}
        await store.announce(keys.reports, fields, guard=keys.marker)


async def main(url: str, workers: int) -> None:
    fleet = Fleet(url, workers)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            task = WorkerTask.from_dict(json.loads(await lines.readline()))
            if number == 0:
                group.create_task(fleet.follow(GenerationKeys(task.job_id, task.generation)))
            group.create_task(fleet.work(task))


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
