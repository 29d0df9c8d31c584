"""The entry point that Lambda calls. Imports no torch: the user's task does, inside the handler."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from smlt.config.function import FunctionEnvironment
from smlt.io.gateway import GATEWAY
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages.worker import WorkerTask
from smlt.worker.gateway import Gateway
from smlt.worker.host import Host
from smlt.worker.invocation import Invocation
from smlt.worker.packages import ensure_packages
from smlt.worker.probe import PROBE, answer
from smlt.worker.warm import WarmMemory
from smlt.worker.watchdog import Watchdog

# Lives as long as the execution environment.
_memory = WarmMemory()
_gateway = Gateway()


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Take part in one generation as one rank; return what became of it."""
    if GATEWAY in event:
        return dict(_gateway.answer(event))
    if PROBE in event:
        return asyncio.run(answer(event))
    # Anchored at once to a clock that nobody sets.
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    function = FunctionEnvironment.read()
    with (
        Watchdog(deadline) as watchdog,
        ThreadPoolExecutor(1, thread_name_prefix="trainer") as trainer,
    ):

        async def compute(work: Any, *args: Any) -> Any:
            loop = asyncio.get_running_loop()
            result, error = await loop.run_in_executor(trainer, _outcome, work, *args)
            if error is not None:
                raise error
            return result

        host = Host(
            code_root=Path(function.task_root),
            cache_dir=Path(function.tmp) / "smlt",
            data_dir=Path(function.data) if function.data else None,
            compute=compute,
            open_store=open_parameter_store,
            watchdog=watchdog,
            memory=_memory,
            log_stream=str(context.log_stream_name),
        )
        task = WorkerTask.from_dict(event)

        async def take_part() -> dict[str, Any]:
            async with open_object_store(task.objects) as objects:
                if function.bundles:
                    tmp = Path(function.tmp)
                    await asyncio.to_thread(ensure_packages, objects, function.bundles, tmp)
                request_id = str(context.aws_request_id)
                invocation = Invocation(
                    task, objects, host, request_id=request_id, deadline=deadline
                )
                return await invocation.run()

        result = asyncio.run(take_part())
    if result.get("retired"):
        print("this environment is not to serve the job again: the process ends", flush=True)
        os._exit(0)
    return result


def _outcome(work: Any, *args: Any) -> tuple[Any, BaseException | None]:
    """Do the work, and return what came of it.

    On its own way out of a thread a StopIteration would never arrive, and a TimeoutError lose its
    traceback.
    """
    try:
        return work(*args), None
    except StopIteration as exc:
        return None, RuntimeError("StopIteration").with_traceback(exc.__traceback__)
    except BaseException as exc:
        return None, exc
