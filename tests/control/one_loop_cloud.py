"""A Lambda service whose functions are tasks on the test's event loop: real workers, no processes.

Scheduler, workers, stores' clients and checkpoints are the product's own code. A rank is killed by
cancelling its task, after which it says nothing more, as a process that was killed.
"""

import asyncio
import itertools
import time
from functools import partial

from smlt.control.lambda_client import LogEvent
from smlt.errors import CloudError
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages.worker import WorkerTask
from smlt.worker.host import Host
from smlt.worker.invocation import Invocation
from smlt.worker.warm import WarmMemory
from smlt.worker.watchdog import Watchdog


class OneLoopCloud:
    def __init__(self, code_root, cache_dir, function_s=1e6):
        self._function_s = function_s
        self._code_root = code_root
        self._cache_dir = cache_dir
        self._ids = itertools.count()
        self._environments = itertools.count()
        self._free = []
        self.running = {}
        self.invoked = []
        self.results = []
        self.events = []
        self.computed = 0
        """Pieces of work done on trainers' threads: a clock for faults that no load changes."""
        self.refusals = 0
        self.twice = False
        self.undelivered = set()
        """Ranks whose events are lost."""
        self.doomed = []
        """Ranks whose next invocation dies before it has said a word; as often as they are here."""
        self.second_dies = False
        """The second delivery of an event that is delivered twice dies."""
        self.slow = {}
        """By log stream, and so by environment: seconds that every piece of work takes there."""
        self.made = []
        self.refuses_functions = False

    async def create_function(self, name, package, **settings):
        if self.refuses_functions:
            raise CloudError(f"creating the function {name} failed: CodeStorageExceededException")
        self.made.append(name)
        return "1"

    async def invoke(self, name, qualifier, payload):
        if self.refusals:
            self.refusals -= 1
            raise CloudError("invoking f failed: TooManyRequestsException: Rate exceeded")
        request_id = f"request-{next(self._ids)}"
        self.invoked.append((payload["generation"], payload["rank"]))
        if payload["rank"] not in self.undelivered:
            for again in range(1 + self.twice):
                self._start(request_id, payload, again)
        return request_id

    def _start(self, request_id, payload, again=False):
        if not self._free:
            self._free.append((WarmMemory(), f"stream-{next(self._environments)}"))
        memory, stream = self._free.pop()
        self._log(stream, f"START RequestId: {request_id} Version: 1")
        host = Host(
            code_root=self._code_root,
            cache_dir=self._cache_dir,
            compute=partial(self._compute, stream),
            open_store=open_parameter_store,
            watchdog=Watchdog(time.monotonic() + 1e6),
            memory=memory,
            log_stream=stream,
        )
        invocation = Invocation(
            WorkerTask.from_dict(payload),
            open_object_store(payload["objects"]),
            host,
            request_id=request_id,
            deadline=time.monotonic() + self._function_s,
        )
        task = asyncio.create_task(invocation.run())
        self.running[task] = payload["rank"]
        task.add_done_callback(lambda task: self._ended(request_id, task, memory, stream))
        if payload["rank"] in self.doomed:
            self.doomed.remove(payload["rank"])
            task.cancel()
        elif again and self.second_dies:
            task.cancel()

    async def _compute(self, stream, work, *args):
        await asyncio.sleep(self.slow.get(stream, 0))
        self.computed += 1
        return work(*args)

    def _ended(self, request_id, task, memory, stream):
        self.running.pop(task)
        status = ""
        if task.cancelled():
            status = "\tStatus: error\tError Type: Runtime.ExitError"
        elif task.exception() is not None:
            raise task.exception()
        else:
            self.results.append(task.result())
            if task.result().get("retired"):
                status = "\tStatus: error\tError Type: Runtime.ExitError"
            else:
                self._free.append((memory, stream))
        self._log(
            stream,
            f"REPORT RequestId: {request_id}\tBilled Duration: 10 ms\tMemory Size: 128 MB\t"
            f"Max Memory Used: 50 MB{status}",
        )

    def _log(self, stream, line):
        self.events.append(LogEvent(stream, int(time.time() * 1000), line))

    def kill(self, rank):
        """Kill a rank if it runs; it gets no word out."""
        victims = [task for task, at in self.running.items() if at == rank]
        for task in victims:
            task.cancel()
        return bool(victims)

    async def log_events(self, name, since_ms):
        return [event for event in self.events if event.timestamp_ms >= since_ms]
