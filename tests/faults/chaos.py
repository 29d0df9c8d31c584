"""`make chaos`: random faults at random moments of real training jobs; the digests must be equal.

    python -m faults.chaos --seed 1 --minutes 3

Prints a line for each fault and a summary. A fault counts when the event log shows that a new
generation followed it. Exits with 1 when a digest differs, a job fails, or anything is left behind.
The seed decides which faults come after how many steps, not how fast the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from jobs.harness import TASKS, Job, Place, until

WORKERS = 3
STEPS = 240
MOST_FAULTS = 6  # in one job
OPTIONS = ("--workers", str(WORKERS), "--steps", str(STEPS), "--json", "--quiet")
STEADY = f"{TASKS / 'steady.py'}:Steady"
LEASE_S = 10.0
LIMIT_S = 90.0


class Victim:
    """A job that faults befall, whoever its client is at the moment."""

    def __init__(self, place: Place, rng: random.Random) -> None:
        self.place = place
        self.rng = rng
        self.job = place.start(STEADY, *OPTIONS)
        self.client: Job = self.job

    @property
    def generations(self) -> int:
        return len(self.job.events("generation"))

    def steps(self) -> int:
        return len(self.job.events("step"))

    def workers(self) -> list[int]:
        """The living processes of the ranks of the newest generation."""
        return [pid for pid in self.job.pids().values() if pid and os.path.exists(f"/proc/{pid}")]

    def kill_workers(self, count: int) -> str:
        pids = self.workers()
        for pid in self.rng.sample(pids, min(count, len(pids))):
            os.kill(pid, signal.SIGKILL)
        return f"kill -9 of {min(count, len(pids))} of {WORKERS} workers"

    def freeze_worker(self) -> str:
        pid = self.rng.choice(self.workers())
        os.kill(pid, signal.SIGSTOP)
        before = self.generations
        self.until(lambda: self.generations > before, "a generation without the frozen worker")
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGCONT)
        return "SIGSTOP of a worker until it was missed, then SIGCONT"

    def kill_valkey(self) -> str:
        endpoint = self.job.cloud()["endpoint"]
        with urllib.request.urlopen(f"{endpoint}/_smlt/health", timeout=10) as answer:
            os.kill(json.load(answer)["valkey_pid"], signal.SIGKILL)
        return "kill -9 of Valkey"

    def empty_valkey(self) -> str:
        with self.job.store() as store:
            store.flushall()
        return "Valkey emptied"

    def kill_client(self) -> str:
        self.client.signal(signal.SIGKILL)
        self.client.process.wait()
        job_id = self.job.folder.name
        self.client = self.place.start(job_id, "--json", "--quiet", command="attach")
        return "kill -9 of the client, then attach"

    def until(self, condition: Callable[[], object], what: str) -> None:
        until(lambda: condition() or self.client.process.poll() is not None, what, LIMIT_S)

    def faults(self) -> dict[str, Callable[[], str]]:
        return {
            "worker": lambda: self.kill_workers(1),
            "two": lambda: self.kill_workers(2),
            "all": lambda: self.kill_workers(WORKERS),
            "freeze": self.freeze_worker,
            "valkey": self.kill_valkey,
            "flush": self.empty_valkey,
            "client": self.kill_client,
        }


def befall(victim: Victim, number: int, began: float) -> Counter[str]:
    """Let faults befall one job, and return which of them began a generation."""
    landed: Counter[str] = Counter()
    rng = victim.rng
    for _ in range(MOST_FAULTS):
        # A fault now and then comes in a start, in a load or in the ending of another one.
        steps = victim.steps() + rng.choice([0, 2, 5, 20])
        victim.until(lambda steps=steps: victim.steps() >= steps and victim.workers(), "progress")
        time.sleep(rng.uniform(0, 0.3))
        if victim.client.process.poll() is not None:
            break
        names = ["worker"] * 5 + ["two"] * 3 + ["valkey"] * 3 + ["flush"] * 2 + ["client", "freeze"]
        # Nobody survives: it costs all since the last checkpoint, so only once a job.
        names += [] if landed["all"] else ["all"]
        name = rng.choice(names)
        before, at = victim.generations, victim.job.status().get("step", 0)
        try:
            what = victim.faults()[name]()
        except (OSError, IndexError, KeyError, ValueError):
            continue  # it had gone meanwhile
        victim.until(lambda before=before: victim.generations > before, f"recovery from {what}")
        counts = victim.generations > before
        landed[name] += counts
        told = f"generation {before + 1}" if counts else "came too late to matter"
        print(f"{time.monotonic() - began:6.1f} s  job {number}  step {at:3d}  {what}: {told}",
              flush=True)  # fmt: skip
    return landed


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults; the digests must be equal.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=3.0)
    given = parser.parse_args()
    path = Path(tempfile.mkdtemp(prefix="chaos-"))
    rng, began = random.Random(given.seed), time.monotonic()
    landed: Counter[str] = Counter()
    wrong = 0
    try:
        calm = Place(path).train(STEADY, *OPTIONS).check(0).summary["weights_digest"]
        print(f"undisturbed: {calm}", flush=True)
        number = 0
        while time.monotonic() - began < 60 * given.minutes:
            number += 1
            place = Place(path / str(number))
            landed += befall(victim := Victim(place, rng), number, began)
            ended = victim.client.end(LIMIT_S)
            digest = json.loads(ended.out)["weights_digest"] if ended.out else None
            same = ended.code == 0 and digest == calm
            wrong += not same
            print(f"{time.monotonic() - began:6.1f} s  job {number}  "
                  f"{'same digest' if same else f'DIFFERS: {digest}'} "
                  f"after {victim.generations} generations", flush=True)  # fmt: skip
            if not same:
                print(ended.err, *(job.err for job in place.jobs), sep="\n", file=sys.stderr)
            place.check_nothing_is_left(30)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(landed.items()))
    print(f"{landed.total()} faults ({kinds}) in {number} jobs: {wrong} without the same digest")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
