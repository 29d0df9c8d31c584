"""Functions on threads beside an event loop, for a third of what ``asyncio.to_thread`` costs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_END_S = 1.0


@dataclass(slots=True, eq=False)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]
    is_over: bool = False

    def execute(self) -> None:
        """Call the function, on a thread of the pool, and tell the loop what came of it."""
        result, error = None, None
        try:
            result = self.function(*self.args)
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._end, result, error)

    def _end(self, result: Any, error: BaseException | None) -> None:
        self.is_over = True
        if self.result.done():  # the caller was cancelled
            return
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(result)

    async def end(self) -> None:
        """Wait until the function has ended, whatever happens meanwhile."""
        while not self.is_over:
            self.result = self.loop.create_future()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self.result])
        if self.result.done() and not self.result.cancelled():
            self.result.exception()  # an error that nobody asks for is no cause of a warning


class Threads:
    """At most ``size`` threads, started as they are needed; for one event loop."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._started: list[threading.Thread] = []
        self._busy = 0

    async def run(
        self, function: Callable[..., T], *args: Any, cut: Callable[[], None] | None = None
    ) -> T:
        """Return what the function returns. It has ended when this has, even when cancelled.

        A thread cannot be cancelled: ``cut`` is what makes the function end early, if anything.
        """
        loop = asyncio.get_running_loop()
        call = _Call(function, args, loop, loop.create_future())
        self._busy += 1
        if len(self._started) < min(self._busy, self._size):
            self._start()
        self._calls.put(call)
        try:
            return await call.result  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            if cut is not None and not call.is_over:
                cut()
            await call.end()
            raise
        finally:
            self._busy -= 1

    def close(self) -> None:
        """End the threads. Nothing may still run on them for long: it is waited for. Idempotent."""
        for _ in self._started:
            self._calls.put(None)
        for thread in self._started:
            thread.join(_END_S)
        self._started.clear()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._started) + 1}"
        thread = threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True)
        self._started.append(thread)
        thread.start()


def _work(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        call.execute()
        del call  # its result may be large
