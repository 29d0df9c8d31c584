"""Run the real command line on jobs of seconds, break what they need, and count what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

import smlt

CODE = Path(smlt.__file__).parents[1]
TASKS = Path(__file__).with_name("tasks")
SMALL = f"{TASKS / 'small.py'}:Regression"
LIMIT_S = 60.0
POLL_S = 0.02


def until(condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
    """Poll until the condition gives something true, and return it."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(POLL_S)


@dataclass(frozen=True)
class Ended:
    """A command that has ended: what a user saw of it."""

    code: int
    out: str
    err: str
    seconds: float

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """What is said of a failure: the line that begins with the program's name."""
        [line] = [line for line in self.err.splitlines() if line.startswith("smlt: ")]
        return line

    def check(self, code: int) -> Ended:
        """Fail, with all that was printed, unless it ended with this code and without a crash."""
        shown = f"exit code {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"
        assert self.code == code, shown
        assert "An error inside smlt" not in self.err, shown
        # A traceback is the task's own, and indented below a heading; ours would begin the line.
        assert not any(line.startswith("Traceback") for line in self.err.splitlines()), shown
        return self


class Job:
    """A ``smlt train`` that runs."""

    def __init__(self, place: Place, arguments: list[str], variables: dict[str, str]) -> None:
        self.place = place
        self._earlier = set(place.run.glob("jobs/*/"))
        self._started = time.monotonic()
        self._files = [place.path / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "smlt", *arguments],
                cwd=place.path,
                env=place.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def folder(self) -> Path | None:
        """The folder that has come into the run directory since the start."""
        found = set(self.place.run.glob("jobs/*/")) - self._earlier
        return found.pop() if found else None

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def status(self) -> dict[str, Any]:
        """What status.json says; nothing before it is there."""
        try:
            return json.loads((self.folder / "status.json").read_text()) if self.folder else {}
        except FileNotFoundError:
            return {}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind, as they are in the log so far."""
        path = self.folder and self.folder / "events.jsonl"
        text = path.read_text() if path and path.exists() else ""
        # The last line may still be on its way.
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def cloud(self) -> dict[str, Any]:
        """What the embedded cloud says of itself: its pid, Valkey's, the address of the store."""
        return json.loads((self.folder / "cloud" / "cloud.json").read_text())

    def store(self) -> redis.Redis:
        """Another client of the job's embedded parameter store."""
        return redis.Redis(unix_socket_path=self.cloud()["parameters"].removeprefix("unix://"))

    def pids(self) -> dict[int, int]:
        """The processes of the ranks."""
        return {rank["rank"]: rank["pid"] for rank in self.status().get("ranks", [])}

    def states(self) -> list[str]:
        """What the ranks do."""
        return [rank["state"] for rank in self.status().get("ranks", [])]

    def kill_rank(self, rank: int) -> None:
        os.kill(self.pids()[rank], signal.SIGKILL)

    def until(self, condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
        """Wait for a condition, but not beyond the end of the job."""
        found = until(lambda: condition() or self.process.poll() is not None, what, limit_s)
        assert found is not True or condition(), f"it ended before {what}:\n{self.err}"
        return found

    def until_step(self, step: int) -> None:
        self.until(lambda: self.status().get("step", 0) >= step, f"step {step}")

    def until_event(self, kind: str) -> dict[str, Any]:
        return self.until(lambda: self.events(kind), f"the event {kind!r}")[-1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, limit_s: float = LIMIT_S) -> Ended:
        """Wait until it has ended."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not ended within {limit_s:g} s:\n{self.err}") from None
        out, err = (path.read_text() for path in self._files)
        return Ended(code, out, err, time.monotonic() - self._started)


class Gate:
    """A step at which every rank waits until the test lets it go on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.params = ["--param", f"gate={path}", "--param", f"wait_at={step}"]

    def waiting(self) -> set[int]:
        """The processes that have come to it."""
        return {int(path.suffix[1:]) for path in self.path.parent.glob(f"{self.path.name}.*")}

    def until_there(self, job: Job, workers: int) -> None:
        there = f"{workers} workers at the gate"
        job.until(lambda: len(self.waiting()) >= workers, there)

    def open(self) -> None:
        self.path.touch()


class Place:
    """A folder of its own, whose path marks every process and socket that belongs to a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run"
        self.jobs: list[Job] = []
        (path / "tmp").mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "TMPDIR": str(path / "tmp"),
            "PYTHONPATH": str(CODE),
            "COLUMNS": "200",
        }

    def start(self, *arguments: str, command: str = "train", **variables: str) -> Job:
        """Start ``smlt train``; the run directory is ours."""
        options = ["--run-dir", str(self.run)] if command != "version" else []
        self.jobs.append(Job(self, [command, *arguments, *options], variables))
        return self.jobs[-1]

    def smlt(self, command: str, *arguments: str, limit_s: float = LIMIT_S) -> Ended:
        """Run a command to its end."""
        return self.start(*arguments, command=command).end(limit_s)

    def train(self, *arguments: str, limit_s: float = LIMIT_S, **variables: str) -> Ended:
        return self.start(*arguments, **variables).end(limit_s)

    def gate(self, step: int) -> Gate:
        self.run.mkdir(exist_ok=True)
        return Gate(self.run / f"gate-{step}", step)

    def processes(self) -> dict[int, str]:
        """Every process whose command line, environment or working directory names the place."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                text = words.decode(errors="replace") + os.readlink(entry / "cwd")
                if str(self.path) in text:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return found

    def sockets(self) -> list[str]:
        """Every unix socket bound below the place."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        bound = [line for line in lines if str(self.path) in line]
        # Folders vanish under the walk while a cloud clears up after itself.
        walk = os.walk(self.path, onerror=lambda _: None)
        paths = (Path(top) / name for top, _, names in walk for name in names)
        return bound + [str(path) for path in paths if path.is_socket()]

    def left(self) -> list[str]:
        return [*self.processes().values(), *self.sockets()]

    def check_nothing_is_left(self, limit_s: float = 0.0) -> None:
        """Fail, and clear up, if a process or a socket is still there after the limit."""
        deadline = time.monotonic() + limit_s
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for job in self.jobs:
            job.process.wait()
        said = "".join(f"\n{job.err}" for job in self.jobs)
        assert not left, "left behind:\n" + "\n".join(left) + said
