"""Forward a rank's warnings to the client, where somebody reads them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from smlt.errors import SmltError
from smlt.messages.worker import WorkerReport
from smlt.worker.generation import Generation


class NoticeForwarder(logging.Handler):
    """Sends what ``smlt`` logs at WARNING to the client as notices. A context manager.

    Only the first rank's should be sent: what concerns the task concerns every rank alike.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(logging.WARNING)
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self._sending: set[asyncio.Task[None]] = set()

    def __enter__(self) -> NoticeForwarder:
        logging.getLogger("smlt").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("smlt").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called on any thread."""
        if record.levelno == logging.WARNING:
            self._loop.call_soon_threadsafe(self._send, record.getMessage())

    def _send(self, text: str) -> None:
        task = asyncio.create_task(self._report(text))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _report(self, text: str) -> None:
        report = WorkerReport(rank=self._generation.task.rank, kind="notice", text=text)
        with contextlib.suppress(SmltError):
            await self._generation.report(report)
