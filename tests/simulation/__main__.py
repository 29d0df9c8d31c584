"""Explore seeds, or replay one: ``python -m tests.simulation --seeds 1000`` or ``--seed 17``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections import Counter
from pathlib import Path

from tests.simulation.world import Plan, play

ROOT = Path(__file__).resolve().parents[2]
MEASURED = 100
"""Seeds under coverage: measuring takes its time."""
COVERED = [
    f"smlt/{path}.py"
    for path in (
        "control/task_scheduler", "control/supervisor", "control/generation_view", "control/job",
        "aggregation/step", "aggregation/transfer", "aggregation/collective",
        "aggregation/notices", "aggregation/window",
        "worker/generation", "worker/invocation", "worker/ending", "worker/periodic_save",
        "io/checkpoint", "io/checkpoint_part", "io/manifest",
        "io/valkey", "io/valkey_control", "io/connection_pool", "io/resp_connection",
    )
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many to explore")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="replay this one, and print what happened")
    parser.add_argument("--coverage", action="store_true", help=f"of the first {MEASURED} seeds")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.seed is not None:
        print(Plan.draw(options.seed))
        result = play(options.seed)
        print(result.story)
        return bool(result.violations)
    return explore(range(options.first, options.first + options.seeds), options.coverage)


def explore(seeds: range, coverage: bool) -> int:
    started = time.monotonic()
    endings, harms, generations, broken = Counter(), Counter(), 0, []
    measuring = measured() if coverage else contextlib.nullcontext()
    with measuring:
        for seed in seeds[:MEASURED] if coverage else []:
            play(seed)
    for seed in seeds:
        result = play(seed)
        endings[result.status or "client dead"] += 1
        harms.update(Plan.draw(seed).harms)
        generations += result.generations
        if result.violations:
            broken.append(seed)
            print(f"seed {seed}: {result.violations[0]}")
            print(f"  replay it: {Path(sys.executable).name} -m tests.simulation --seed {seed}")
    print(
        f"{len(seeds)} seeds, {generations} generations, {time.monotonic() - started:.0f} s; "
        f"ended as {_listed(endings)}; harms {_listed(harms)}; {len(broken)} violated a promise"
    )
    return bool(broken)


@contextlib.contextmanager
def measured():
    """Print how much of the code that must run in the simulation did."""
    import coverage

    recorder = coverage.Coverage(include=[str(ROOT / name) for name in COVERED], data_file=None)
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()
    # What ran when the modules were imported, before the recording, is no part of it.
    total = missed = 0
    for name in COVERED:
        lines, missing = _inside_functions(recorder, ROOT / name)
        total += lines
        missed += len(missing)
        print(f"{100 * (1 - len(missing) / max(lines, 1)):4.0f} %  {name}  {missing or ''}")
    print(f"{100 * (1 - missed / total):4.0f} %  of the lines inside functions")


def _inside_functions(recorder, path: Path):
    import ast

    inside = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update(range(node.body[0].lineno, node.end_lineno + 1))
    _, statements, _, missing, _ = recorder.analysis2(str(path))
    return len(inside & set(statements)), sorted(inside & set(missing))


def _listed(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
