"""What a function does before its handler is called: a cold start without torch, by phase.

The package of the NumPy example, as it is deployed, in a process that sees nothing else. Target:
400 ms of our own code, which is all but the interpreter's start and NumPy's. Beside it the same
package without its compiled modules. Prints medians of processor time, which memory buys:

    python -m benchmarks.bench_cold_start
"""

from __future__ import annotations

import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from smlt.aws import machine
from smlt.aws.machine import Machine
from smlt.aws.package import build_package
from smlt.config.aws import AwsConfig, cache_dir
from smlt.control.artifact_manager import locate

ROUNDS = 15
EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist"
PROGRAM = """
import sys, time
sys.dont_write_bytecode = True
at = [time.process_time()]
sys.path[:0] = sys.argv[1:]
import numpy; at.append(time.process_time())
import asyncio, msgpack, lz4.frame, xxhash, redis.asyncio; at.append(time.process_time())
import smlt.worker.handler; at.append(time.process_time())
assert "torch" not in sys.modules and "boto3" not in sys.modules
print(*(1000 * b - 1000 * a for a, b in zip([0.0, *at], at)))
"""
PHASES = ("interpreter", "NumPy", "asyncio, redis, codecs", "smlt")


def unpacked(folder: Path) -> list[str]:
    """Build the package for this machine's Python and unpack it; return what goes on sys.path."""
    python = f"3.{sys.version_info.minor}"
    machine.GLIBC[python] = tuple(map(int, platform.libc_ver()[1].split(".")))
    aws = AwsConfig(python=python, architecture=Machine(python, platform.machine()).architecture)
    target = locate(f"{EXAMPLE / 'softmax.py'}:Softmax", EXAMPLE)
    package = build_package(target, [EXAMPLE / "data"], aws, cache_dir(), torch=False)
    root = folder / "root"
    package.write_layer(folder / "layer.zip")
    (folder / "code.zip").write_bytes(package.code_zip)
    for name in ("layer.zip", "code.zip"):
        with zipfile.ZipFile(folder / name) as archive:
            archive.extractall(root)
    sizes = [(folder / name).stat().st_size / 1e6 for name in ("layer.zip", "code.zip")]
    print(f"layer {sizes[0]:.1f} MB, code {sizes[1]:.1f} MB")
    return [str(root), str(root / "python")]


def measure(paths: list[str]) -> list[float]:
    """Return the medians of the phases in milliseconds."""
    rows = []
    for _ in range(ROUNDS + 1):
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, *paths]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        rows.append([float(word) for word in done.stdout.split()])
    return [statistics.median(column) for column in zip(*rows[1:], strict=True)]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        paths = unpacked(Path(name))
        compiled = measure(paths)
        for folder in list(Path(name, "root").rglob("__pycache__")):
            shutil.rmtree(folder)
        plain = measure(paths)
    print(f"{'':24}{'as deployed':>14}{'not compiled':>14}")
    for phase, *row in zip(PHASES, compiled, plain, strict=True):
        print(f"{phase:24}" + "".join(f"{value:11.0f} ms" for value in row))
    own = [sum(row[2:]) for row in (compiled, plain)]
    print(f"{'our own code':24}" + "".join(f"{value:11.0f} ms" for value in own))


if __name__ == "__main__":
    main()
