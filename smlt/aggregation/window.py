"""Run awaitables a few ahead, and take their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def in_order(
    starts: Iterable[Callable[[], Coroutine[Any, Any, Result]]], window: int
) -> AsyncGenerator[Result, None]:
    """Yield each coroutine's result in the order given, at most ``window`` of them under way.

    Close it (``contextlib.aclosing``) when not consumed to its end: what is under way is cancelled,
    and has ended when the closing has.
    """
    if window == 1:  # needs no tasks, which cost more than a small shard does
        for start in starts:
            yield await start()
        return
    waiting = iter(starts)
    running: deque[asyncio.Task[Result]] = deque()
    try:
        for start in waiting:
            running.append(asyncio.create_task(start()))
            if len(running) == window:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
