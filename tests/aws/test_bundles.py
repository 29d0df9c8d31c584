"""A job whose packages do not fit a function: fetched, verified, unpacked, and timed."""

from __future__ import annotations

import importlib.metadata
import shutil

import numpy as np
import pytest

from smlt.aws.wheels import WORKER_NEEDS
from tests.aws.conftest import Shell, write_wheel
from tests.io.servers import ValkeyServer
from tests.jobs.harness import TASKS

HEAVY_BYTES = 300 << 20
TASK = """
import small


class Heavy(small.Regression):
    def dataset(self, data, split):
        import heavy  # only functions have it

        assert heavy.size() == heavy.SIZE
        return super().dataset(data, split)
"""
PACKAGE = f"""
import os

SIZE = {HEAVY_BYTES}


def size():
    return os.path.getsize(os.path.join(os.path.dirname(__file__), "weights.bin"))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_of_300_mb_is_brought_to_the_workers(tmp_path, account, bucket, cache):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in WORKER_NEEDS:
        write_wheel(wheels, name, importlib.metadata.version(name))
    noise = np.random.default_rng(7).integers(0, 256, HEAVY_BYTES, dtype=np.uint8).tobytes()
    write_wheel(wheels, "heavy", "1.0", {"heavy/__init__.py": PACKAGE, "heavy/weights.bin": noise})
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(TASKS / "small.py", job)
    (job / "heavy_task.py").write_text(TASK)
    (job / "requirements.txt").write_text("heavy\n")
    shell = Shell(tmp_path, account, wheels, cache)
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        stores = ("--objects", bucket, "--parameters", f"redis://127.0.0.1:{server.port}")
        shown = shell.smlt("package", job / "heavy_task.py:Heavy", limit_s=200).check(0)
        [line] = [line for line in shown.out.splitlines() if line.startswith("heavy 1.0")]
        assert "bundle" in line
        assert "requirements.txt line 1" in line
        ended = shell.smlt(
            *("train", job / "heavy_task.py:Heavy", *stores, "--platform", "aws", "--yes"),
            *("--workers", "2", "--steps", "5", "--json", "--quiet"),
            limit_s=300,
        ).check(0)
        logs = shell.smlt("logs", ended.summary["job_id"]).check(0).out
    phases = [line for line in logs.splitlines() if "fetched and unpacked to 315 MB" in line]
    assert len(phases) == 2, logs
    print("\n".join(phases))
    shell.smlt("destroy", "--objects", bucket).check(0)
