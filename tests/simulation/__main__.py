"""Explore seeds, or replay one: ``python -m tests.simulation --seeds 1000`` or ``--seed 17``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.simulation import dropin
from tests.simulation.dropin import DropinPlan
from tests.simulation.plan import Plan
from tests.simulation.world import play

ROOT = Path(__file__).resolve().parents[2]
MEASURED = 200
"""Seeds under coverage: measuring takes its time."""
ENOUGH = 0.9
COVERED = [
    f"smlt/{path}.py"
    for path in (
        # Scheduler
        "control/task_scheduler", "control/supervisor", "control/roll_call", "control/retries",
        "control/generation_view", "control/job",
        # Aggregation
        "aggregation/step", "aggregation/transfer", "aggregation/collective",
        "aggregation/notices", "aggregation/window", "aggregation/wire",
        # The drop-in
        "aggregation/session", "aggregation/heartbeat", "aggregation/rendezvous",
        "aggregation/exchange", "aggregation/group",
        # A rank
        "worker/invocation", "worker/rank", "worker/generation", "worker/loading", "worker/trainer",
        "worker/step_reports", "worker/divergence_watch",
        "worker/ending", "worker/periodic_save", "worker/residuals", "worker/warm",
        # Checkpoints
        "io/checkpoint", "io/checkpoint_part", "io/manifest",
        # Clients of the stores
        "io/valkey", "io/valkey_control", "io/server_group", "io/server_errors",
        "io/connection_pool", "io/resp_connection", "io/patient_objects",
    )
]  # fmt: skip


APART = {
    "new_job_id", "this_client",  # name a real host
    "read_range", "put_file", "local_path",  # of threads, files and disks
    "url", "__aenter__", "__aexit__",
}  # fmt: skip
"""Functions that cannot run in the simulation, or say nothing: no part of what is measured."""


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
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        return replay(options.kind or "launched", options.seed)
    kinds = [options.kind] if options.kind else list(KINDS)
    seeds = range(options.first, options.first + options.seeds)
    return explore(kinds, seeds, options.coverage)


def replay(kind: str, seed: int) -> int:
    plan, play = KINDS[kind]
    print(plan.draw(seed))
    result = play(seed)
    print(result.story)
    print(f"digest {result.digest}")
    return bool(result.violations)


def explore(kinds: list[str], seeds: range, coverage: bool) -> int:
    counts = [Counts(kind) for kind in kinds]
    uncovered = 0
    if coverage:
        with measured() as poor:
            for count in counts:
                count.play(seeds[:MEASURED])
        # A few seeds do not come everywhere.
        uncovered = poor() if len(seeds) >= MEASURED else 0
        seeds = seeds[MEASURED:]
    for count in counts:
        count.play(seeds)
        print(count)
    return bool(uncovered or any(count.broken for count in counts))


class Counts:
    """What came of the seeds of a kind of job that were played so far."""

    def __init__(self, kind: str) -> None:
        self.broken = []
        self._kind = kind
        self._seconds = self._seeds = self._generations = 0
        self._endings, self._harms = Counter(), Counter()

    def play(self, seeds: range) -> None:
        plan, play = KINDS[self._kind]
        began = time.monotonic()
        for seed in seeds:
            try:
                with _real_time_limited():
                    result = play(seed)
            except StuckError as error:
                self._found(seed, "".join(traceback.format_exception(error)))
                continue
            self._seeds += 1
            self._generations += result.generations
            self._endings[result.status or "client dead"] += 1
            self._harms.update(plan.draw(seed).harms)
            if result.violations:
                self._found(seed, result.violations[0])
        self._seconds += time.monotonic() - began

    def _found(self, seed: int, violation: str) -> None:
        self.broken.append(seed)
        command = f"python -m tests.simulation --kind {self._kind} --seed {seed}"
        print(f"{self._kind} {seed}: {violation}\n  replay it: {command}")

    def __str__(self) -> str:
        return (
            f"{self._kind}: {self._seeds} seeds, {self._generations} generations, "
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


@contextlib.contextmanager
def measured():
    """Print how much of the code that must run in the simulation did; count what falls short."""
    import coverage

    recorder = coverage.Coverage(include=[str(ROOT / name) for name in COVERED], data_file=None)
    shares = []
    recorder.start()
    try:
        yield lambda: sum(share < ENOUGH for share in shares)
    finally:
        recorder.stop()
    # What ran when the modules were imported, before the recording, is no part of it.
    total = missed = 0
    for name in COVERED:
        lines, missing = _inside_functions(recorder, ROOT / name)
        total += lines
        missed += len(missing)
        shares.append(1 - len(missing) / max(lines, 1))
        print(f"{100 * shares[-1]:4.0f} %  {name}  {missing or ''}")
    print(f"{100 * (1 - missed / total):4.0f} %  of the lines inside functions")


def _inside_functions(recorder, path: Path):
    import ast

    inside = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in APART:
            inside.update(range(node.body[0].lineno, node.end_lineno + 1))
    _, statements, _, missing, _ = recorder.analysis2(str(path))
    return len(inside & set(statements)), sorted(inside & set(missing))


def _listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
