"""PyTorch as it is published: too large for a function, so each fetches it and imports it."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from tests.aws.conftest import Shell
from tests.io.servers import ValkeyServer
from tests.jobs.harness import TASKS

# The functions of these tests also see the packages of the tests' own Python; so what was fetched
# is imported by a process that sees nothing else.
TASK = """
import os
import subprocess
import sys

import small

PROGRAM = '''
import sys, time
sys.path[:0] = sys.argv[1:]
begin = time.monotonic()
import torch
x = torch.ones(3, requires_grad=True)
(x * x).sum().backward()
assert x.grad.tolist() == [2.0, 2.0, 2.0]
seconds = time.monotonic() - begin
print(f"fetched torch {torch.__version__} from {torch.__file__}, imported in {seconds:.1f} s")
'''


class Heavy(small.Regression):
    def dataset(self, data, split):
        found = [path for path in sys.path if "smlt-packages-" in path]
        root = os.environ["LAMBDA_TASK_ROOT"]
        command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", PROGRAM, *found, root]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return super().dataset(data, split)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torch_as_it_is_published_is_brought_to_the_workers(
    tmp_path, account, bucket, wheelhouse, cache
):
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(TASKS / "small.py", job)
    (job / "heavy_task.py").write_text(TASK)
    (job / "requirements.txt").write_text("torch>=2.13,<2.14\n")
    shell = Shell(tmp_path, account, wheelhouse, cache)
    del shell.variables["PIP_NO_INDEX"], shell.variables["PIP_FIND_LINKS"]
    shell.variables |= {name: v for name, v in os.environ.items() if name.startswith("PIP_")}
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        stores = ("--objects", bucket, "--parameters", f"redis://127.0.0.1:{server.port}")
        shown = shell.smlt("package", job / "heavy_task.py:Heavy", limit_s=400).check(0)
        [line] = [line for line in shown.out.splitlines() if line.startswith("torch 2.13")]
        assert "bundle" in line
        print(line)
        ended = shell.smlt(
            *("train", job / "heavy_task.py:Heavy", *stores, "--platform", "aws", "--yes"),
            *("--workers", "2", "--steps", "5", "--json", "--quiet"),
            limit_s=500,
        ).check(0)
        logs = shell.smlt("logs", ended.summary["job_id"]).check(0).out
    phases = [line for line in logs.splitlines() if "fetched and unpacked to" in line]
    assert len(phases) == 2, logs
    sizes = [int(re.search(r"unpacked to (\d+) MB", line)[1]) for line in phases]
    assert min(sizes) > 500
    imported = [line for line in logs.splitlines() if "fetched torch 2.13" in line]
    assert len(imported) >= 2, logs
    assert all("smlt-packages-" in line for line in imported)
    print("\n".join([*phases, *imported]))
    shell.smlt("destroy", "--objects", bucket).check(0)
