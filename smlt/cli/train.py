"""``smlt train``: run one job in the foreground, from the first view to the exit code."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from smlt.cli.crash import keep_traceback
from smlt.cli.live import View, open_view
from smlt.cli.summary import failure_text, success_text, to_json
from smlt.cli.wording import print_plain
from smlt.config import TrainConfig
from smlt.control.progress import Progress, Summary
from smlt.errors import JobHeldError, SmltError, UserError

EXIT_CODES = {"completed": 0, "failed": 1, "stopped": 130}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
VIEW_INTERVAL_S = 0.1
STOP_NOW_S = 15.0  # for a job that was told to stop at once
CANCEL_S = 5.0  # for a job that did not, and was cancelled


class TrainingSession(Protocol):
    """What the command line needs of a session."""

    @property
    def progress(self) -> Progress:
        """Changes in place while ``train`` runs."""
        ...

    async def train(self) -> Summary:
        """Run the job to its end."""
        ...

    async def request_stop(self) -> None:
        """Let the job end after the step it is in, with a checkpoint."""
        ...

    async def stop_now(self) -> None:
        """End everything at once."""
        ...


OpenSession = Callable[[TrainConfig], TrainingSession]


def train(config: TrainConfig, open_session: OpenSession) -> int:
    """Run a job in the foreground and return the exit code.

    Raises:
        UserError: the task or the data are wrong; nothing was started.
    """
    session = open_session(config)
    return foreground(session, config.run_dir, as_json=config.json, quiet=config.quiet)


def foreground(session: TrainingSession, run_dir: Path, *, as_json: bool, quiet: bool) -> int:
    """Follow a session to its end, print how it ended, and return the exit code.

    Raises:
        UserError: what was given is wrong; nothing was started.
    """
    console = Console(stderr=True)
    summary = to_its_end(session, run_dir, console, quiet=quiet)
    _print_summary(summary, run_dir, console, as_json=as_json)
    return EXIT_CODES[summary.state]


def to_its_end(
    session: TrainingSession, run_dir: Path, console: Console, *, quiet: bool
) -> Summary:
    """Follow a session to its end, which may be a failure, and return how it ended.

    Raises:
        UserError: what was given is wrong; nothing was started.
    """
    try:
        with open_view(console, quiet=quiet, clock=time.monotonic) as view:
            return asyncio.run(follow(session, view))
    except (UserError, JobHeldError):
        raise
    except SmltError as exc:
        return session.progress.summary("failed", _with_way_out(exc, session.progress))
    except Exception as exc:
        return session.progress.summary("failed", keep_traceback(exc, run_dir))


def _with_way_out(error: SmltError, progress: Progress) -> str:
    """Say what failed, and how to go on where something has been saved."""
    if not progress.step:
        return str(error)
    where = f" ({progress.checkpoint})" if progress.checkpoint else ""
    way = f"`smlt resume {progress.job_id}` goes on from the newest checkpoint"
    return f"{error}; {way}{where}"


async def follow(
    session: TrainingSession, view: View, *, stop_now_s: float = STOP_NOW_S
) -> Summary:
    """Run the job, keep the view fresh, and turn signals into a clean stop, then a quick one.

    Args:
        session: has the job.
        view: is already entered.
        stop_now_s: how long the job may take to stop at once before it is abandoned.
    """
    job = asyncio.create_task(session.train())
    stops = _Stops(session, view, job, stop_now_s)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stops.on_signal)
    try:
        while not job.done():
            view.update(session.progress)
            await asyncio.wait({job}, timeout=VIEW_INTERVAL_S)
        view.end(session.progress)
        return await job
    except asyncio.CancelledError:
        if not stops.at_once:
            raise
        return session.progress.summary("stopped", "It was stopped at once.")
    finally:
        await stops.close()
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Stops:
    """Answers signals: the first stops the job cleanly, the second at once, a third kills us."""

    def __init__(
        self,
        session: TrainingSession,
        view: View,
        job: asyncio.Task[Summary],
        stop_now_s: float,
    ) -> None:
        self._session = session
        self._view = view
        self._job = job
        self._stop_now_s = stop_now_s
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def at_once(self) -> bool:
        return len(self._tasks) > 1

    def on_signal(self) -> None:
        if not self._tasks:
            self._view.say(
                "Stopping after this step; the checkpoint is kept. "
                "Press Ctrl-C again to stop at once."
            )
            self._start(self._session.request_stop())
            return
        self._view.say("Stopping at once; the newest checkpoint is kept.")
        self._start(self._stop_now())
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, stopping: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(self._attempt(stopping)))

    async def _attempt(self, stopping: Coroutine[Any, Any, None]) -> None:
        try:
            await stopping
        except SmltError as exc:
            self._view.say(f"Stopping did not work: {exc}")

    async def _stop_now(self) -> None:
        try:
            async with asyncio.timeout(self._stop_now_s):
                await self._session.stop_now()
                await asyncio.wait({self._job})
        except TimeoutError:
            self._view.say(
                f"The job did not stop within {self._stop_now_s:.3g} s and is abandoned."
            )
        self._job.cancel()
        await asyncio.wait({self._job}, timeout=CANCEL_S)


def _print_summary(summary: Summary, run_dir: Path, console: Console, *, as_json: bool) -> None:
    logs = run_dir / "jobs" / summary.job_id / "logs"
    if summary.state == "failed":
        there = logs if summary.job_id and logs.is_dir() else None
        print_plain(console, failure_text(summary, there))
    if as_json:
        print(to_json(summary.to_dict()))
    elif summary.state != "failed":
        torch = importlib.util.find_spec("torch") is not None
        print(success_text(summary, here=Path.cwd(), torch=torch))
    sys.stdout.flush()
