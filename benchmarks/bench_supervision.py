"""How much of a core one client needs to supervise many workers.

    python benchmarks/bench_supervision.py --workers 1000 --seconds 60 [--json]

The client is the real one: scheduler, supervisor, resource manager, event log, a Valkey server on a
unix socket. The workers are connections of one other process: each holds its own, renews its lease
and looks at marker and client every second, and reports as a trainer does; they do not train.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from smlt.control.event_log import EventLog
from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.lambda_client import LambdaService
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.progress_feed import ProgressFeed
from smlt.control.resource_manager import ResourceManager
from smlt.control.step_cost import StepCost
from smlt.control.task_scheduler import TaskScheduler
from smlt.embedded.valkey_server import ValkeyServer
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages.job import JobSpec, Limits, ResourcePlan

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120.0
LIMITS = Limits(start_s=LIMIT_S)


class SocketCloud:
    """A Lambda service that hands invocations to the process of workers; it writes no log."""

    def __init__(self, workers: asyncio.subprocess.Process) -> None:
        self._workers = workers
        self._invoked = 0

    async def create_function(self, name: str, package: bytes, **settings: Any) -> str:
        return "1"

    async def invoke(self, name: str, qualifier: str, payload: dict[str, Any]) -> str:
        assert self._workers.stdin is not None
        self._workers.stdin.write(json.dumps(payload).encode() + b"\n")
        await self._workers.stdin.drain()
        self._invoked += 1
        return f"request-{self._invoked}"

    async def log_events(self, name: str, since_ms: int) -> list[Any]:
        return []


async def measure(folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Supervise so many workers, without a Lambda service."""
    async with ValkeyServer(folder, env=dict(os.environ)) as server:
        command = [sys.executable, "-m", "benchmarks.scaling.socket_workers"]
        fleet = await asyncio.create_subprocess_exec(
            *command, server.url, str(workers), stdin=asyncio.subprocess.PIPE, cwd=ROOT
        )
        try:
            return await supervise(folder, server.url, SocketCloud(fleet), workers, seconds)
        finally:
            if fleet.returncode is None:
                fleet.kill()
            await fleet.wait()


async def supervise(
    folder: Path,
    url: str,
    cloud: LambdaService,
    workers: int,
    seconds: float,
    limits: Limits = LIMITS,
) -> dict[str, Any]:
    """Start workers by a cloud, and supervise them for so long after all have started."""
    spec = JobSpec(
        target="t:T",
        batch_size=4096,
        virtual_workers=1024,
        budget_usd=1e6,
        limits=limits,
    )
    plan = ResourcePlan(workers=workers, memory_mb=1769)
    prices = read_prices()
    (folder / "logs").mkdir()
    feed = ProgressFeed(Progress(), EventLog(folder / "events.jsonl"))
    async with (
        open_object_store((folder / "objects").as_uri()) as objects,
        open_parameter_store(url, time_limit_s=60) as store,
    ):
        began = time.monotonic()
        scheduler = TaskScheduler(
            await Job.create(objects, "supervised", spec, plan),
            objects=objects,
            store=store,
            cloud=cloud,
            functions=Functions(_function),
            invocations=Invocations(folder / "logs", prices=prices),
            feed=feed,
            objects_url=objects.url,
            parameters_url=url,
            manager=ResourceManager(spec, plan, StepCost(prices=prices), notice=feed.notice),
        )
        running = asyncio.create_task(scheduler.run())
        while len(feed.progress.ranks) < workers or feed.progress.step == 0:
            assert not running.done(), running.result()
            assert time.monotonic() < began + limits.start_s, "the workers did not start in time"
            await asyncio.sleep(0.1)
        started_s = time.monotonic() - began
        start_cpu_s = time.process_time()
        first, since = feed.progress.step, time.monotonic()
        await asyncio.sleep(seconds)
        cpu_s, wall_s = time.process_time() - start_cpu_s, time.monotonic() - since
        steps = feed.progress.step - first
        await scheduler.request_stop()
        outcome = await running
    assert outcome.status == "stopped", outcome
    assert outcome.generations == 1, outcome
    return {
        "workers": workers,
        "seconds": wall_s,
        "client_cpu_s_per_minute": 60 * cpu_s / wall_s,
        "cores": cpu_s / wall_s,
        "started_s": started_s,
        "start_cpu_s": start_cpu_s,
        "steps_seen": steps,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


async def _function(memory_mb: int) -> Function:
    return Function(name="f", version="1", memory_mb=memory_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="smlt-bench-") as folder:
        result = asyncio.run(measure(Path(folder), given.workers, given.seconds))
    if given.json:
        print(json.dumps(result))
        return
    print(
        f"{result['workers']:,} workers: {result['client_cpu_s_per_minute']:.1f} CPU-seconds a "
        f"minute ({result['cores']:.2f} of a core), {result['peak_mb']:.0f} MB; all had started "
        f"after {result['started_s']:.1f} s, with {result['start_cpu_s']:.1f} CPU-seconds"
    )


if __name__ == "__main__":
    main()
