"""`python -m benchmarks`: measure the kernels and write benchmarks/RESULTS.md and its chart."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.report import write_report

FOLDER = Path(__file__).parent
FILES = ("bench_shard_reduce.py", "bench_codec.py")


def measure(name: str) -> dict[str, object]:
    """Run one file in a process of its own: what another left in malloc would decide its figures.

    Raises:
        SystemExit: a benchmark failed.
    """
    measured = FOLDER / ".cache" / f"{Path(name).stem}.json"
    measured.parent.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "--benchmark-columns=median", "--timeout=600",
        f"--benchmark-json={measured}", str(FOLDER / name),
    ]  # fmt: skip
    code = subprocess.run(command, check=False, timeout=3600).returncode
    if code:
        sys.exit(code)
    result: dict[str, object] = json.loads(measured.read_text())
    return result


if __name__ == "__main__":
    write_report([measure(name) for name in FILES], FOLDER)
