"""How much of the code that must run in the simulation did."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 0.9
COVERED = [
    f"smlt/{path}.py"
    for path in (
        # Scheduler
        "control/task_scheduler", "control/supervisor", "control/roll_call", "control/retries",
        "control/generation_view", "control/job", "control/kept_states", "control/steering",
        "control/invocation_log",
        # Aggregation
        "aggregation/step", "aggregation/transfer", "aggregation/collective",
        "aggregation/notices", "aggregation/window", "aggregation/wire",
        # The drop-in
        "aggregation/session", "aggregation/standing", "aggregation/heartbeat",
        "aggregation/rendezvous", "aggregation/exchange", "aggregation/outbox",
        "aggregation/parcels", "aggregation/group",
        # A rank
        "worker/invocation", "worker/rank", "worker/generation", "worker/loading", "worker/trainer",
        "worker/step_reports", "worker/divergence_watch",
        "worker/ending", "worker/periodic_save", "worker/residuals", "worker/warm",
        # Checkpoints
        "io/checkpoint", "io/checkpoint_part", "io/manifest",
        # Clients of the stores
        "io/valkey", "io/valkey_control", "io/server_group", "io/server_errors", "io/together",
        "io/connection_pool", "io/resp_connection", "io/patient_objects",
    )
]  # fmt: skip
APART = {
    "new_job_id", "this_client",  # name a real host
    "read_range", "put_file", "local_path", "shard_threads",  # of threads, files and disks
    "go_on", "has_reached_target",  # of more data and of a further end, which are not played
    "url", "__aenter__", "__aexit__",
}  # fmt: skip
"""Functions that cannot run in the simulation, or say nothing: no part of what is measured."""

Lines = dict[str, set[int]]
"""By module: numbers of lines that have run."""


@contextlib.contextmanager
def measured(wanted: bool) -> Iterator[Lines]:
    """Give the lines that run inside the block, once it is over."""
    lines: Lines = {name: set() for name in COVERED}
    if not wanted:
        yield lines
        return
    recorder = coverage.Coverage(include=[str(ROOT / name) for name in COVERED], data_file=None)
    recorder.start()
    try:
        yield lines
    finally:
        recorder.stop()
    for name in COVERED:
        lines[name].update(recorder.get_data().lines(str(ROOT / name)) or ())


def report(ran: Mapping[str, set[int]]) -> int:
    """Print the share of each module's lines inside functions that have run; count the poor ones.

    What runs when a module is imported is no part of it.
    """
    total = missed = poor = 0
    for name in COVERED:
        lines = _inside_functions(ROOT / name)
        missing = sorted(lines - ran[name])
        total, missed = total + len(lines), missed + len(missing)
        share = 1 - len(missing) / max(len(lines), 1)
        poor += share < ENOUGH
        print(f"{100 * share:4.0f} %  {name}  {missing or ''}")
    print(f"{100 * (1 - missed / total):4.0f} %  of the lines inside functions")
    return poor


def _inside_functions(path: Path) -> set[int]:
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in APART:
            inside.update(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
    _, statements, _, _, _ = coverage.Coverage(data_file=None).analysis2(str(path))
    return inside & set(statements)
