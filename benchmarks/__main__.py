"""`python -m benchmarks`: measure the kernels and write benchmarks/RESULTS.md and its chart."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.report import write_report

FOLDER = Path(__file__).parent
FILES = ("bench_shard_reduce.py", "bench_codec.py")


def main() -> int:
    measured = FOLDER / ".cache" / "measured.json"
    measured.parent.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pytest", "-q", "--benchmark-columns=median", "--timeout=600",
        f"--benchmark-json={measured}", *(str(FOLDER / name) for name in FILES),
    ]  # fmt: skip
    code = subprocess.run(command, check=False, timeout=3600).returncode
    if code == 0:
        write_report(json.loads(measured.read_text()), FOLDER)
    return code


if __name__ == "__main__":
    sys.exit(main())
