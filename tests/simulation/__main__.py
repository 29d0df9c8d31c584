"""Explore seeds, or replay one: ``python -m tests.simulation --seeds 1000`` or ``--seed 17``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation import dropin, measuring
from tests.simulation.dropin import DropinPlan
from tests.simulation.plan import Plan
from tests.simulation.world import play

MEASURED = 200
"""Seeds under coverage: measuring takes its time."""
AT_ONCE = 20
"""Seeds that a process takes at a time."""
REAL_LIMIT_S = 600
"""For one seed, which takes a second: code that never awaits would stop the clock for ever."""


class StuckError(KeyboardInterrupt):
    """No seed takes so long. Nothing swallows it on its way, as it might another error."""


KINDS = {"launched": (Plan, play), "drop-in": (DropinPlan, dropin.play)}
"""Of jobs: what a seed stands for, and what plays it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many to explore")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one, and print what happened")
    parser.add_argument("--kind", choices=KINDS, help="of jobs; all by default, to replay launched")
    parser.add_argument("--coverage", action="store_true", help=f"of the first {MEASURED} seeds")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that explore")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        return replay(options.kind or "launched", options.seed)
    kinds = [options.kind] if options.kind else list(KINDS)
    seeds = range(options.first, options.first + options.seeds)
    return explore(kinds, seeds, options.coverage, options.processes)


def replay(kind: str, seed: int) -> int:
    plan, play = KINDS[kind]
    print(plan.draw(seed))
    result = play(seed)
    print(result.story)
    print(f"digest {result.digest}")
    return bool(result.violations)


def explore(kinds: list[str], seeds: range, coverage: bool, processes: int) -> int:
    counts = {kind: Counts(kind) for kind in kinds}
    turns = [
        (kind, seeds[at : at + AT_ONCE], coverage and at < MEASURED)
        for at in range(0, len(seeds), AT_ONCE)
        for kind in kinds
    ]
    with ProcessPoolExecutor(processes) as pool:
        for found in pool.map(play_all, *zip(*turns, strict=True)):
            for text in found.broken.values():
                print(text, flush=True)
            counts[found.kind].add(found)
    poor = 0
    if coverage:
        ran = {name: set() for name in measuring.COVERED}
        for count in counts.values():
            for name, lines in count.lines.items():
                ran[name] |= lines
        poor = measuring.report(ran)
    for count in counts.values():
        print(count)
    # A few seeds, or one kind of them, do not come everywhere.
    falls_short = poor if len(seeds) >= MEASURED and kinds == list(KINDS) else 0
    return bool(falls_short or any(count.broken for count in counts.values()))


def play_all(kind: str, seeds: range, coverage: bool) -> Counts:
    count = Counts(kind)
    # Of a world that is buried.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    with measuring.measured(coverage) as lines:
        for seed in seeds:
            count.play(seed)
    count.lines = lines
    return count


class Counts:
    """What came of the seeds of a kind of job that were played so far."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.broken = {}
        """By seed: what to say of it."""
        self.lines = {}
        self._seconds = self._seeds = self._generations = 0
        self._endings, self._harms = Counter(), Counter()

    def play(self, seed: int) -> None:
        plan, play = KINDS[self.kind]
        began = time.monotonic()
        self._seeds += 1
        self._harms.update(plan.draw(seed).harms)
        try:
            with _real_time_limited():
                result = play(seed)
        except StuckError as error:
            self._found(seed, "".join(traceback.format_exception(error)))
            return
        self._generations += result.generations
        self._endings[result.status or "client dead"] += 1
        if result.violations:
            self._found(seed, result.violations[0])
        self._seconds += time.monotonic() - began

    def add(self, other: Counts) -> None:
        """Count in what came of other seeds."""
        self.broken |= other.broken
        for name, lines in other.lines.items():
            self.lines.setdefault(name, set()).update(lines)
        self._seconds += other._seconds
        self._seeds += other._seeds
        self._generations += other._generations
        self._endings += other._endings
        self._harms += other._harms

    def _found(self, seed: int, violation: str) -> None:
        command = f"python -m tests.simulation --kind {self.kind} --seed {seed}"
        self.broken[seed] = f"{self.kind} {seed}: {violation}\n  replay it: {command}"

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self._seeds} seeds, {self._generations} generations, "
            f"{self._seconds:.0f} s; ended as {_listed(self._endings)}; "
            f"harms {_listed(self._harms)}; {len(self.broken)} violated a promise"
        )


@contextlib.contextmanager
def _real_time_limited():
    def give_up(*_):
        raise StuckError(f"not at its end after {REAL_LIMIT_S} s of real time")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(REAL_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def _listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
