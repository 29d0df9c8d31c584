"""A Lambda service of one rank, in this very process: for a debugger.

No limit of Lambda's holds here. Scheduler and worker run on one event loop, the task's code on
the main thread, so that breakpoints and Ctrl-C work as in any script.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from smlt.control.lambda_client import LogEvent
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages import WorkerTask
from smlt.worker.invocation import Invocation
from smlt.worker.watchdog import Watchdog

_NEVER_S = 1e9


class InlineCloud:
    """Runs every invocation as a task on this loop. An async context manager."""

    def __init__(self, code_root: Path) -> None:
        self._code_root = code_root
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scratch = tempfile.TemporaryDirectory(prefix="smlt-inline-")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._scratch.cleanup()

    async def create_function(self, name: str, package: bytes, **_: Any) -> str:
        """Accept any function: the user's code is imported from where it lies."""
        return "1"

    async def invoke(self, name: str, qualifier: str, payload: Mapping[str, Any]) -> str:
        """Start the invocation, and return its request id."""
        request_id = str(uuid.uuid4())
        invocation = Invocation(
            WorkerTask.from_dict(payload),
            open_object_store(payload["objects"]),
            request_id=request_id,
            deadline=time.monotonic() + _NEVER_S,
            code_root=self._code_root,
            cache_dir=Path(self._scratch.name),
            compute=_on_this_thread,
            open_store=open_parameter_store,
            watchdog=Watchdog(time.monotonic() + _NEVER_S),
        )
        task = asyncio.create_task(invocation.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return request_id

    async def log_events(self, name: str, since_ms: int) -> list[LogEvent]:
        """Return nothing: what the task prints goes where this process prints."""
        return []


async def _on_this_thread(work: Callable[..., Any], *args: Any) -> Any:
    # Let the other side of the loop have its turn between two pieces of work.
    await asyncio.sleep(0)
    return work(*args)
