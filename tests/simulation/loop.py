"""An event loop whose time is simulated, and which runs several processes in an order drawn by lot.

Nothing waits: when no callback is ready, the time jumps to the next timer. Each callback belongs
to the process in whose context it was scheduled. Within a process callbacks keep their order, as
asyncio promises; between processes a seed decides. A process can be frozen, as by SIGSTOP, or
killed, after which it has no effect any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from collections import deque

PROCESS = contextvars.ContextVar("process", default=None)


class Deadlock(Exception):
    """Nothing is ready, and no timer is set: the program would wait for ever."""


class Process:
    """A client or an execution environment: its callbacks, its connections and its end."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.dead = False
        self.frozen = False
        self.callbacks = 0
        """How many have been run: a clock for faults that counts await points."""
        self.crash_at = None
        self.on_death = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, coroutine):
        return self.loop.create_task(coroutine, context=self.context.copy())

    def call_later(self, delay_s, callback, *args):
        return self.loop.call_later(delay_s, callback, *args, context=self.context)

    def tasks(self):
        return [task for task in self.loop.unfinished() if task.process is self]

    def kill(self) -> None:
        """End the process: its tasks are unwound, but nothing they still do is seen by others."""
        if self.dead:
            return
        self.dead = True
        self.crash_at = None
        self.thaw()
        for callback in self.on_death:
            callback()
        self._unwind()

    def _unwind(self) -> None:
        for task in self.tasks():
            task.cancel()
        if self.tasks():
            self.loop.call_later(0.01, self._unwind, context=contextvars.Context())

    def freeze(self) -> None:
        if not self.dead:
            self.frozen = True
            self.loop.ready_queue.freeze(self)

    def thaw(self) -> None:
        self.frozen = False
        self.loop.ready_queue.thaw(self)


class _Task(asyncio.Task):
    """Hashes by number: a set of tasks is walked in the same order in every run of a seed."""

    def __init__(self, number, *args, **kwargs):
        self.number = number
        context = kwargs.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(*args, **kwargs)

    def __hash__(self):
        return self.number


class _Future(asyncio.Future):
    def __init__(self, number, **kwargs):
        self.number = number
        super().__init__(**kwargs)

    def __hash__(self):
        return self.number


class _Nothing:
    _cancelled = True


_NOTHING = _Nothing()


class _ReadyQueue:
    """What BaseEventLoop uses of a deque, with a queue for each process."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._queues = {}
        self._frozen = {}
        self._count = 0

    def __len__(self):
        return self._count

    def append(self, handle) -> None:
        process = handle._context.get(PROCESS)
        if process is not None and process.frozen:
            self._frozen.setdefault(process, deque()).append(handle)
            return
        self._queues.setdefault(process, deque()).append(handle)
        self._count += 1

    def popleft(self):
        if not self._count:
            return _NOTHING  # the process was frozen after its callbacks had been counted
        waiting = list(self._queues)
        process = waiting[0] if len(waiting) == 1 else self._rng.choice(waiting)
        queue = self._queues[process]
        handle = queue.popleft()
        if not queue:
            del self._queues[process]
        self._count -= 1
        if process is not None and not handle._cancelled:
            process.callbacks += 1
            if process.crash_at is not None and process.callbacks >= process.crash_at:
                process.kill()
        return handle

    def freeze(self, process) -> None:
        queue = self._queues.pop(process, None)
        if queue:
            self._frozen.setdefault(process, deque()).extend(queue)
            self._count -= len(queue)

    def thaw(self, process) -> None:
        for handle in self._frozen.pop(process, ()):
            self.append(handle)

    def clear(self) -> None:
        self._queues.clear()
        self._frozen.clear()
        self._count = 0


class _JumpingSelector:
    """Waits for no file: the time passes at once."""

    def __init__(self, loop) -> None:
        self._loop = loop

    def select(self, timeout):
        if timeout is None:
            raise Deadlock("nothing is ready and nothing is awaited by time")
        self._loop.now += timeout
        return []

    def close(self) -> None:
        pass


class SimulatedLoop(asyncio.BaseEventLoop):
    """One process of the operating system plays a cloud; the same seed plays it the same way."""

    def __init__(self, rng: random.Random, until: float) -> None:
        self.now = 0.0
        super().__init__()
        self._clock_resolution = 1e-9
        self._selector = _JumpingSelector(self)
        self._ready = self.ready_queue = _ReadyQueue(rng)
        self._numbers = itertools.count()
        self._rng = rng
        self._until = until
        self._live = {}
        self.connector = None
        """What opens a transport to a simulated server, for redis-py."""
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if self.now > self._until:
            self._until = float("inf")
            raise TimeoutError(f"the simulated world was not at rest at {self.now:g} s")
        super()._run_once()

    def _make_task(self, loop, coroutine, context=None):
        task = _Task(next(self._numbers), coroutine, loop=loop, context=context)
        self._live[task] = None
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task) -> None:
        self._live.pop(task, None)

    def unfinished(self):
        return [task for task in self._live if not task.done()]

    def who_waits(self) -> str:
        """Name what is unfinished, with the process that it belongs to."""
        return "; ".join(
            f"{task.process.name if task.process else '-'}: {task.get_coro().__qualname__}"
            for task in self.unfinished()
        )

    def create_future(self):
        return _Future(next(self._numbers), loop=self)

    def run_in_executor(self, executor, function, *args):
        """Do a thread's work at once; it is known a little later, as of a thread."""
        future = self.create_future()
        try:
            result, error = function(*args), None
        except BaseException as exc:
            result, error = None, exc

        def finish():
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._rng.uniform(0, 0.002), finish)
        return future

    async def create_connection(self, factory, host=None, port=None, **_):
        return await self.connector(factory, host, port)

    def _process_events(self, events) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
