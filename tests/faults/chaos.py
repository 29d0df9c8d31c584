"""`make chaos`: random faults at random moments of real training jobs; the digests must be equal.

    python -m faults.chaos --seed 1 --minutes 3

Prints a line for each fault and a summary. A fault that must cost a generation counts when the
event log shows that one followed it; one that must cost nothing, when training went on in the
generation that it befell. A job that meets its retry limit is resumed, once. Exits with 1 when a
digest differs, a job fails, or anything is left behind. The seed decides which faults come after
how many steps, not how fast the machine is.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from jobs.harness import Place

from faults.victim import LIMIT_S, OPTIONS, STEADY, STEPS, Victim

MOST_FAULTS = 12  # in one job
COSTLY = {
    "worker": 5, "two workers": 3, "all workers": 1, "frozen worker": 1, "valkey": 2,
    "emptied valkey": 2, "client": 2, "stop": 2, "cloud": 2,
}  # fmt: skip
"""Faults that end a generation, and how often each comes in relation to the others."""
HARMLESS = {
    "duplicate": 3, "cut connections": 3, "slow worker": 2, "slow valkey": 1, "slow client": 1,
}  # fmt: skip
"""Faults that a generation outlives."""
ONCE = {"all workers", "frozen worker", "cloud"}
"""Costly in time: at most once in a job."""
GAVE_UP = re.compile(r"\(3 times\)|failed 5 times|generations without a step")
"""How a job's message ends that has met its retry limit."""
LAST = 20
"""Steps without faults: a client that dies with its work done leaves nothing to compare."""
HOSTILE = 0.3
"""Share of jobs on a Lambda that misbehaves by itself: events twice or late, throttling, kills."""


class Chaos:
    """Jobs, one after the other, until the time is over."""

    def __init__(self, path: Path, seed: int, calm: str, minutes: float) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.calm = calm
        self.began = time.monotonic()
        self._minutes = minutes
        self.jobs = self.wrong = self.resumed = 0
        self.landed: Counter[str] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether nothing new is to begin; the job that runs then comes to its end in peace."""
        return time.monotonic() - self.began > 60 * self._minutes

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  job {self.jobs}  {text}", flush=True)

    def run_job(self) -> None:
        """Begin a job, let faults befall it, and compare what came of it."""
        self.jobs += 1
        place = Place(self.path / str(self.jobs))
        hostile = self.rng.randrange(1000) if self.rng.random() < HOSTILE else None
        victim = Victim(place, self.rng, hostile)
        self.say("begins" if hostile is None else f"begins, --chaos {hostile}")
        befallen: Counter[str] = Counter()
        for _ in range(MOST_FAULTS):
            names = {n: w for n, w in (COSTLY | HARMLESS).items() if n not in ONCE & set(befallen)}
            [name] = self.rng.choices(list(names), list(names.values()))
            steps = victim.steps() + self.rng.choice([0, 2, 5, 20])
            # A fault now and then comes in a start, in a load or in the ending of another one.
            victim.until(lambda n=steps: victim.steps() >= n and victim.workers(), "progress")
            time.sleep(self.rng.uniform(0, 0.3))
            if victim.has_ended or victim.steps() > STEPS - LAST or self.is_over:
                break
            befallen[name] += self.befall(victim, name)
        self.landed += befallen
        self.compare(victim)

    def befall(self, victim: Victim, name: str) -> bool:
        """Let one fault befall a job; whether it came in time to matter."""
        generation, step = victim.generations, victim.job.status().get("step", 0)
        try:
            what = victim.strike(name)
        except (OSError, IndexError, KeyError, ValueError):
            return False  # what it was to befall had gone meanwhile
        if name in HARMLESS:
            steps = victim.steps()
            victim.until(lambda: victim.steps() > steps, f"a step after {what}")
            landed, told = victim.steps() > steps, "training goes on"
        else:
            victim.until(lambda: victim.generations > generation, f"recovery from {what}")
            landed, told = victim.generations > generation, f"generation {victim.generations}"
        self.say(f"step {step:3d}  {what}: {told if landed else 'came too late to matter'}")
        return landed

    def compare(self, victim: Victim) -> None:
        ended = victim.client.end(LIMIT_S)
        if ended.code == 1 and GAVE_UP.search(ended.err):
            # So many faults without a step between are more than a job goes on after by itself.
            self.resumed += 1
            self.say(f"gives up after {victim.generations} generations, and is resumed")
            victim.resume()
            ended = victim.client.end(LIMIT_S)
        digest = json.loads(ended.out)["weights_digest"] if ended.out else None
        same = ended.code == 0 and digest == self.calm
        self.wrong += not same
        told = "same digest" if same else f"DIFFERS: {digest}"
        self.say(f"{told} after {victim.generations} generations")
        if not same:
            print(ended.err, *(job.err for job in victim.place.jobs), sep="\n", file=sys.stderr)
        victim.place.check_nothing_is_left(30)

    @property
    def summary(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.landed.items()))
        costly = sum(count for name, count in self.landed.items() if name in COSTLY)
        return (
            f"{self.landed.total()} faults, {costly} of which cost a generation ({kinds}), "
            f"in {self.jobs} jobs, {self.resumed} of them resumed after they had given up: "
            f"{self.wrong} without the same digest"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Random faults; the digests must be equal.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=3.0)
    given = parser.parse_args()
    path = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        calm = Place(path).train(STEADY, *OPTIONS).check(0).summary["weights_digest"]
        print(f"undisturbed: {calm}", flush=True)
        chaos = Chaos(path, given.seed, calm, given.minutes)
        while not chaos.is_over:
            chaos.run_job()
    finally:
        shutil.rmtree(path, ignore_errors=True)
    print(chaos.summary)
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
