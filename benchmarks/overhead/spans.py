"""CPU time by what it is spent on, in a process that computes and has an event loop beside it.

A span counts the CPU time of its own thread between its beginning and end; what a span within it
counts is taken off. A coroutine's span is on while one of its steps runs, and goes along into the
tasks and threads that it begins. The file is packed with the benchmark's task.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

seconds: Counter[str] = Counter()
"""CPU seconds so far, by what they were spent on."""
_now: ContextVar[str] = ContextVar("what CPU time is spent on", default="")
_threads = threading.local()


@contextmanager
def span(name: str) -> Generator[None]:
    """Count the thread's CPU time from here on as spent on this."""
    stack: list[list[float]] = _threads.__dict__.setdefault("stack", [])
    inner = [0.0]
    stack.append(inner)
    began = time.thread_time()
    try:
        yield
    finally:
        spent = time.thread_time() - began
        stack.pop()
        seconds[name] += spent - inner[0]
        if stack:
            stack[-1][0] += spent


class _Steps:
    """A coroutine, each of whose steps is a span."""

    def __init__(self, name: str, coroutine: Any) -> None:
        self._name = name
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        send, argument = self._coroutine.send, None
        while True:
            token = _now.set(self._name)
            try:
                with span(self._name):
                    awaited = send(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                _now.reset(token)
            try:
                send, argument = self._coroutine.send, (yield awaited)
            except BaseException as error:
                send, argument = self._coroutine.throw, error


def watch(owner: Any, method: str, name: str) -> None:
    """Count what a function costs, wherever it is called from now on."""
    original = inspect.getattr_static(owner, method)
    function = original.__func__ if isinstance(original, classmethod | staticmethod) else original
    if inspect.iscoroutinefunction(function):
        watched = _watched_coroutine(function, name)
    else:

        @functools.wraps(function)
        def watched(*args: Any, **options: Any) -> Any:
            with span(_now.get() or name):
                return function(*args, **options)

    setattr(owner, method, watched)


def _watched_coroutine(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    async def watched(*args: Any, **options: Any) -> Any:
        _follow_tasks()
        # What another span has asked for is its own.
        return await _Steps(_now.get() or name, function(*args, **options))

    return watched


def follow_threads() -> None:
    """Have spans go along into the threads that they begin."""
    to_thread = asyncio.to_thread

    async def followed(function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        name = _now.get()
        if not name:
            return await to_thread(function, *args, **options)

        def work() -> Any:
            with span(name):
                return function(*args, **options)

        return await to_thread(work)

    asyncio.to_thread = followed  # type: ignore[assignment]


def _follow_tasks() -> None:
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(_make_task)


def _make_task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    name = _now.get()

    async def steps() -> Any:
        return await _Steps(name, coroutine)

    return asyncio.Task(steps() if name else coroutine, loop=loop, **options)


def snapshot() -> dict[str, Any]:
    """Return when it is, what CPU time the process has taken, and what of it is known."""
    return {"at": time.monotonic(), "cpu": time.process_time(), "spans": dict(seconds)}
