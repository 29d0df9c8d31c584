"""An event loop in a thread of its own, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from smlt.errors import AbortedError

T = TypeVar("T")


class EventLoopThread:
    """A context manager; leaving it cancels what still runs, and ends the thread.

    Work begins in the order in which it was submitted.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def __enter__(self) -> Self:
        started = threading.Event()
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.call_soon(started.set)
        # A daemon: a script that ends without leaving must not hang for ever.
        self._thread = threading.Thread(
            target=self._serve, args=(self._loop,), name=self._name, daemon=True
        )
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.runs or self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    @property
    def runs(self) -> bool:
        """Whether it does, in this process: threads do not come along through a fork."""
        return self._loop is not None and self._process == os.getpid()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start the work there; cancelling the future cancels it.

        Raises:
            AbortedError: the thread does not run.
        """
        if self._loop is None:
            work.close()
            raise AbortedError(f"{self._name} is closed: use it inside its `with` statement")
        if not self.runs:
            work.close()
            raise AbortedError(
                f"{self._name} belongs to process {self._process}, from which this one was forked:"
                " open another one here, of a rank of its own"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work there and wait for its result; an interrupt cancels it."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Call a function there, soon."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function, *args)
