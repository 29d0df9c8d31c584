"""A Lambda service of one rank, in this very process: for a debugger.

No limit of Lambda's holds here. Scheduler and worker run on one event loop, the task's code on
the main thread, so that breakpoints and Ctrl-C work as in any script.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from smlt.control.lambda_client import LogEvent
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages.worker import WorkerTask
from smlt.worker.host import Host
from smlt.worker.invocation import Invocation
from smlt.worker.warm import WarmMemory
from smlt.worker.watchdog import Watchdog

_NEVER_S = 1e9


class InlineCloud:
    """Runs every invocation as a task on this loop. An async context manager."""

    def __init__(self, code_root: Path) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: list[LogEvent] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="smlt-inline-")
        self._host = Host(
            code_root=code_root,
            cache_dir=Path(self._scratch.name),
            compute=_on_this_thread,
            open_store=open_parameter_store,
            watchdog=Watchdog(time.monotonic() + _NEVER_S),
            memory=WarmMemory(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._scratch.cleanup()

    async def invoke(self, name: str, qualifier: str, payload: Mapping[str, Any]) -> str:
        """Start the invocation, and return its request id."""
        request_id = str(uuid.uuid4())
        task = asyncio.create_task(self._take_part(WorkerTask.from_dict(payload), request_id))
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_end, request_id, time.time()))
        return request_id

    async def _take_part(self, task: WorkerTask, request_id: str) -> dict[str, Any]:
        async with open_object_store(task.objects) as objects:
            deadline = time.monotonic() + _NEVER_S
            invocation = Invocation(
                task, objects, self._host, request_id=request_id, deadline=deadline
            )
            return await invocation.run()

    async def log_events(self, name: str, since_ms: int) -> list[LogEvent]:
        """Return how invocations ended; what the task prints goes where this process prints."""
        return [event for event in self._events if event.timestamp_ms >= since_ms]

    def _on_end(self, request_id: str, began: float, task: asyncio.Task[Any]) -> None:
        """Write what Lambda would write into the log."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        billed_ms = 1000 * (time.time() - began)
        report = (
            f"REPORT RequestId: {request_id}\tBilled Duration: {billed_ms:.0f} ms"
            "\tMemory Size: 0 MB\tMax Memory Used: 0 MB"
        )
        lines = [f"START RequestId: {request_id} Version: 1"]
        if error is not None:
            lines += traceback.format_exception(error)
            report += f"\tStatus: error\tError Type: {type(error).__name__}"
        now = int(time.time() * 1000)
        self._events += [LogEvent(request_id, now, line) for line in [*lines, report]]


async def _on_this_thread(work: Callable[..., Any], *args: Any) -> Any:
    # Let the other side of the loop have its turn between two pieces of work.
    await asyncio.sleep(0)
    return work(*args)
