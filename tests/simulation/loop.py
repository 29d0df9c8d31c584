"""An event loop whose time is simulated, and which runs several processes in an order drawn by lot.

Nothing waits: when no callback is ready, the time jumps to the next timer. Each callback belongs
to the process in whose context it was scheduled. Within a process callbacks keep their order, as
asyncio promises; between processes a seed decides. A process can be frozen, as by SIGSTOP, or
killed, after which it has no effect any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import threading
from collections import deque

PROCESS = contextvars.ContextVar("process", default=None)


MOST_ROUNDS = 50_000
"""Of callbacks at one instant: what takes more goes round in circles."""


class Hang(Exception):
    """The simulated world does not come to its end."""


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


def _awaited(coroutine) -> str:
    """Name a coroutine and those in which it waits, one in the other, each with its line."""
    names = []
    while hasattr(coroutine, "__qualname__"):
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        names.append(coroutine.__qualname__ + (f":{frame.f_lineno}" if frame else ""))
        inner = getattr(coroutine, "cr_await", None)
        coroutine = inner or getattr(coroutine, "gi_yieldfrom", None)
    return " > ".join(names)


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
            raise Hang("nothing is ready, and nothing is awaited by time")
        self._loop.now += timeout
        return []

    def close(self) -> None:
        pass


class SimulatedThreads:
    """Plays ``smlt.io.threads.Threads``."""

    def __init__(self, loop) -> None:
        self._loop = loop

    async def run(self, function, *args, cut=None):
        ended = self._loop.run_in_executor(None, function, *args)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            await asyncio.wait([ended])
            raise

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
        self.until = until
        """When all must be at rest."""
        self._moment, self._rounds = 0.0, 0
        self._live = {}
        self.on_error = lambda text: None
        """Is told of a callback that raised: nobody else would be."""
        self.set_exception_handler(self._tell)
        self.connector = None
        """What opens a transport to a simulated server, for redis-py."""
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if self.now > self.until:
            self.until = float("inf")
            raise Hang(f"the simulated world was not at rest at {self.now:g} s")
        if self.now > self._moment:
            self._moment, self._rounds = self.now, 0
        self._rounds += 1
        if self._rounds > MOST_ROUNDS:
            self._rounds = 0
            raise Hang(f"callbacks go round in circles at {self.now:g} s, and no time passes")
        super()._run_once()

    def _tell(self, loop, context) -> None:
        handle = context.get("handle")
        process = handle and handle._context.get(PROCESS)
        if handle is not None and not (process and process.dead):
            self.on_error(f"{context['message']} raised {context.get('exception')!r}")

    def bury(self, processes) -> None:
        """End what is left, so that Python does not complain of tasks that are never finished."""
        for process in processes:
            process.kill()
        for task in self.unfinished():
            task.cancel()
        self.until = float("inf")
        with contextlib.suppress(Hang):
            for _ in range(100):
                if not self.unfinished():
                    break
                self.run_until_complete(asyncio.sleep(0.1))
        self.close()

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
        """Name what is unfinished: whose it is, and what of it waits where for what."""
        return "; ".join(
            f"{task.process.name if task.process else 'world'}: {_awaited(task.get_coro())}"
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

    def threads(self) -> SimulatedThreads:
        return SimulatedThreads(self)

    def call_soon_threadsafe(self, callback, *args, context=None):
        if self._thread_id not in (None, threading.get_ident()):
            self.on_error(f"{callback!r} comes from a thread: nobody could play that again")
        return super().call_soon_threadsafe(callback, *args, context=context)

    async def create_connection(self, factory, host=None, port=None, **_):
        return await self.connector(factory, host, port)

    def _process_events(self, events) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
