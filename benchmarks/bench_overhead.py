"""What it costs that nothing is lost: CPU time of an undisturbed job, by what it is spent on.

    python benchmarks/bench_overhead.py --seconds 150 [--workers 2] [--write]

A real job on the embedded Lambda, with a checkpoint a minute as by default. CPU time is summed from
spans (``overhead/spans.py``) inside the workers and the client, between the first steps and the end
of training; the share is that of all CPU time of workers and client. What the event loop does to
move the bytes of a lease is no part of a span: it is said separately, with all else that the client
does, which is counted in full. With ``--write`` the table goes to benchmarks/OVERHEAD.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TARGET = 0.03
BATCH = 256
"""Samples of a step on each worker: 0.15 s of work on one vCPU."""
SETTLING_S = 5.0
"""After the first record of each process: imports and the first steps are no part of it."""
Record = dict[str, Any]


def train(place: Path, workers: int, seconds: float) -> tuple[list[Record], list[list[Record]]]:
    """Train for about so long; return the client's records and each worker's."""
    file = place / "client.jsonl"
    command = [
        sys.executable, str(FOLDER / "overhead" / "client.py"), str(file),
        "train", f"{FOLDER / 'overhead' / 'task.py'}:Perceptron",
        "--workers", str(workers), "--batch-size", str(BATCH * workers), "--memory-mb", "1769",
        "--epochs", "100000",
        "--run-dir", str(place / "run"),
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True) as job:
        try:
            _, said = job.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # A job with a deadline would adapt to it.
            job.send_signal(signal.SIGINT)
            _, said = job.communicate(timeout=120)
        else:
            sys.exit(f"the job has ended by itself:\n{said}")
    client = [json.loads(line) for line in file.read_text().splitlines()]
    logs = sorted(place.glob("run/jobs/*/logs/rank-*.log"))
    return client, [_records(log) for log in logs]


def _records(log: Path) -> list[Record]:
    lines = log.read_text().splitlines()
    return [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("spans ")]


def between(records: list[Record], first: float, last: float) -> tuple[float, Counter[str]]:
    """Return CPU seconds of a process in a stretch of time, and what of them is known."""
    times = [record["at"] for record in records]
    begin = records[bisect_left(times, first)]
    end = records[min(bisect_left(times, last), len(records) - 1)]
    known = Counter(end["spans"])
    known.subtract(begin["spans"])
    return end["cpu"] - begin["cpu"], known


def measure(workers: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        client, ranks = train(Path(folder), workers, seconds)
    first = max(records[0]["at"] for records in [client, *ranks]) + SETTLING_S
    last = min(records[-1]["at"] for records in [client, *ranks])
    parts: Counter[str] = Counter()
    total = 0.0
    for records in ranks:
        cpu, known = between(records, first, last)
        total += cpu
        parts.update(known)
    client_cpu, known = between(client, first, last)
    parts.update(known)
    parts["client: all else"] = client_cpu - sum(known.values())
    total += client_cpu
    return {
        "workers": workers,
        "seconds": last - first,
        "cpu_s": total,
        "shares": {name: spent / total for name, spent in sorted(parts.items())},
        "share": sum(parts.values()) / total,
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| spent on | % of CPU time |", "|---|---|"]
    lines += [f"| {name} | {100 * share:.2f} |" for name, share in found["shares"].items()]
    whole = f"**{100 * found['share']:.2f}**"
    lines.append(f"| **all of it** (target: at most {100 * TARGET:g}) | {whole} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time spent so that nothing is lost.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--write", action="store_true", help="to benchmarks/OVERHEAD.md")
    given = parser.parse_args()
    found = measure(given.workers, given.seconds)
    text = (
        f"{found['workers']} workers of 1,769 MB and one client, {found['seconds']:.0f} s of "
        f"training, {found['cpu_s']:.0f} s of CPU time:\n\n{table(found)}\n"
    )
    print(text)
    if given.write:
        (FOLDER / "OVERHEAD.md").write_text(f"{HEAD}\n{text}")


HEAD = """# What it costs that nothing is lost

`python benchmarks/bench_overhead.py --write`: an undisturbed job on the embedded Lambda (a
perceptron of 4.2 million weights and Adam, so 50 MB of state; batches of 256 for each worker), a
checkpoint a minute, a digest of the state compared every 50 steps. CPU time from spans, as a share
of all CPU time of workers and client.
"""

if __name__ == "__main__":
    main()
