"""A real training job that faults befall, and the faults: one method for each kind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.harness import TASKS, Job, Place, until

WORKERS = 3
STEPS = 240
OPTIONS = ("--workers", str(WORKERS), "--steps", str(STEPS), "--json", "--quiet")
STEADY = f"{TASKS / 'steady.py'}:Steady"
LIMIT_S = 90.0
PAUSE_S = 2.0
"""Of a process that is slow: less than any lease."""
FUNCTIONS = "/2015-03-31/functions"


class Victim:
    """A job, whoever its client is at the moment."""

    def __init__(self, place: Place, rng: random.Random, hostile: int | None = None) -> None:
        self.place = place
        self.rng = rng
        options = () if hostile is None else ("--chaos", str(hostile))
        self.job = place.start(STEADY, *OPTIONS, *options)
        self.client: Job = self.job

    @property
    def generations(self) -> int:
        return len(self.job.events("generation"))

    @property
    def has_ended(self) -> bool:
        return self.client.process.poll() is not None

    def steps(self) -> int:
        return len(self.job.events("step"))

    def workers(self) -> list[int]:
        """The living processes of the ranks of the newest generation."""
        return [pid for pid in self.job.pids().values() if pid and os.path.exists(f"/proc/{pid}")]

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(lambda: condition() or self.has_ended, what, LIMIT_S)

    def strike(self, name: str) -> str:
        """Let a fault of this name happen; return what it was, in words."""
        method: Callable[[], str] = getattr(self, f"_{name.replace(' ', '_')}")
        return method()

    # What ends a generation

    def _worker(self) -> str:
        return self._kill_workers(1)

    def _two_workers(self) -> str:
        return self._kill_workers(2)

    def _all_workers(self) -> str:
        return self._kill_workers(WORKERS)

    def _kill_workers(self, count: int) -> str:
        pids = self.workers()
        if len(pids) < count:
            raise ValueError("so many are not there")
        for pid in self.rng.sample(pids, count):
            os.kill(pid, signal.SIGKILL)
        return f"kill -9 of {count} of {WORKERS} workers"

    def _frozen_worker(self) -> str:
        pid, before = self.rng.choice(self.workers()), self.generations
        os.kill(pid, signal.SIGSTOP)
        self.until(lambda: self.generations > before, "a generation without the frozen worker")
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGCONT)
        return "SIGSTOP of a worker until it was missed, then SIGCONT"

    def _valkey(self) -> str:
        os.kill(self._health()["valkey_pid"], signal.SIGKILL)
        return "kill -9 of Valkey"

    def _emptied_valkey(self) -> str:
        with self.job.store() as store:
            store.flushall()
        return "Valkey emptied"

    def _client(self) -> str:
        self.client.signal(signal.SIGKILL)
        self.client.process.wait()
        self._go_on("attach")
        return "kill -9 of the client, then attach"

    def _stop(self) -> str:
        self.client.signal(signal.SIGINT)
        self.client.end(LIMIT_S)
        self.resume()
        return "Ctrl-C, then resume"

    def _cloud(self) -> str:
        os.kill(self.job.cloud()["pid"], signal.SIGKILL)
        self.client.end(LIMIT_S)
        self.resume()
        return "kill -9 of the embedded Lambda, then resume"

    def resume(self) -> None:
        """Go on with a job that has ended."""
        self._go_on("resume")

    def _go_on(self, command: str) -> None:
        self.client = self.place.start(self.job.folder.name, "--json", "--quiet", command=command)

    # What a generation outlives

    def _duplicate(self) -> str:
        """The event of a rank that is at work, once more."""
        rank = self.rng.randrange(WORKERS)
        state = json.loads(self._job_state().read_text())
        task = {
            "job_id": state["job_id"],
            "generation": state["generation"],
            "rank": rank,
            "token": state["token"],
            "objects": f"file://{self.place.run / 'objects'}",
            "parameters": self.job.cloud()["parameters"],
        }
        [function, *_] = self._call(f"{FUNCTIONS}/")["Functions"]
        path = f"{FUNCTIONS}/{function['FunctionName']}/invocations"
        self._call(path, json.dumps(task).encode(), {"X-Amz-Invocation-Type": "Event"})
        return f"the event of rank {rank}, delivered again"

    def _cut_connections(self) -> str:
        with self.job.store() as store:
            cut = store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return f"{cut} connections to Valkey cut"

    def _slow_worker(self) -> str:
        return self._pause(self.rng.choice(self.workers()), "a worker")

    def _slow_valkey(self) -> str:
        return self._pause(self._health()["valkey_pid"], "Valkey")

    def _slow_client(self) -> str:
        return self._pause(self.client.process.pid, "the client")

    def _pause(self, pid: int, who: str) -> str:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)
        return f"SIGSTOP of {who} for {PAUSE_S:g} s"

    # Where things are

    def _job_state(self) -> Path:
        return self.place.run / "objects" / "jobs" / self.job.folder.name / "job.json"

    def _health(self) -> dict[str, Any]:
        return self._call("/_smlt/health")

    def _call(self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        request = urllib.request.Request(
            self.job.cloud()["endpoint"] + path, data=body, headers=headers or {}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else {}
