"""The whole life of a deployment, by the very code that runs against AWS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smlt.aws.release import TAG
from tests.aws.lives import ACCESS_POINT
from tests.io.servers import ValkeyServer
from tests.jobs.harness import SMALL, until

MOUNTED = """
import small


class Mounted(small.Regression):
    def dataset(self, data, split):
        assert list(data) == ["there.npy"], list(data)
        assert data["there.npy"][3] == 3
        return super().dataset(data, split)
"""
EXAMPLES = Path(__file__).parents[2] / "examples" / "mnist"


@pytest.fixture
def valkey(tmp_path):
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield f"redis://127.0.0.1:{server.port}"


def tagged(account):
    """What AWS's own index knows of any deployment."""
    found = account.client("resourcegroupstaggingapi").get_resources(TagFilters=[{"Key": TAG}])
    return [entry["ResourceARN"] for entry in found["ResourceTagMappingList"]]


def test_a_job_from_its_package_to_nothing(shell, account, bucket, valkey):
    stores = ("--objects", bucket, "--parameters", valkey)
    job = ("train", SMALL, *stores, "--platform", "aws", "--yes", "--json", "--quiet")
    # The client is outside the private network that the functions are in.
    closed = {"TEST_CLOSED_PORT": valkey.rpartition(":")[2]}
    trained = shell.smlt(*job, "--workers", "4", "--steps", "20", **closed).check(0)
    assert trained.summary["state"] == "completed"
    # Lambda's own meter, and the bill that was read from its log and from answers of the gateway.
    metered = sum(entry["gb_s"] for name, entry in account.say("bill").items() if "-here-" in name)
    assert trained.summary["billed_gb_s"] == pytest.approx(metered, rel=0.02)
    assert any("through the function" in notice for notice in trained.summary["notices"])
    assert any("--cache-node TYPE counts" in notice for notice in trained.summary["notices"])
    assert tagged(account)

    shell.smlt("destroy", "--objects", bucket).check(0)
    assert account.client("lambda").list_functions()["Functions"] == []
    assert tagged(account) == []


@pytest.mark.slow
def test_deploying_twice_asking_the_doctor_stopping_and_resuming(shell, account, bucket, valkey):
    stores = ("--objects", bucket, "--parameters", valkey)
    planned = shell.smlt("deploy", SMALL, *stores, "--dry-run").check(0)
    assert "role smlt-here-" in planned.out
    assert account.client("lambda").list_functions()["Functions"] == []
    assert not account.client("s3").list_objects_v2(Bucket=bucket.split("/")[2]).get("Contents")
    shell.smlt("deploy", SMALL, *stores).check(0)
    again = shell.smlt("deploy", SMALL, *stores).check(0)
    assert "changed 0 of 4 things" in again.out
    healthy = shell.smlt("doctor", *stores).check(0)
    assert "ok    parameter store from there: answers" in healthy.out
    closed = shell.smlt("doctor", "--objects", bucket, "--parameters", "redis://127.0.0.1:1")
    assert "FAULT parameter store from there" in closed.check(1).out
    assert "subnets and security_groups" in closed.out

    job = ("--workers", "4", "--steps", "40", "--json", "--quiet")
    aws = ("--platform", "aws", "--yes")
    stopped = shell.smlt("train", SMALL, *stores, *aws, *job, "--deadline", "1s", "--no-adapt")
    resumed = shell.smlt("resume", "--json", "--quiet", "--deadline", "1h").check(0)
    assert resumed.summary["generations"] > 1, stopped.err
    local = shell.smlt("train", SMALL, *job).check(0)
    assert local.summary["weights_digest"] == resumed.summary["weights_digest"]
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mnist_across_a_killed_worker(shell, account, bucket, valkey, tmp_path):
    """The NumPy example with four workers, one of which dies on the way."""
    prepare = [sys.executable, str(EXAMPLES / "prepare.py")]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    stores = ("--objects", bucket, "--parameters", valkey, "--run-dir", tmp_path / "run")
    job = ("train", f"{EXAMPLES / 'softmax.py'}:Softmax", "--workers", "4", "--epochs", "2")
    process = shell.start(*job, *stores, "--platform", "aws", "--yes", "--json", "--quiet")

    def status():
        [path] = (tmp_path / "run").glob("jobs/*/status.json")
        return json.loads(path.read_text())

    def is_training():
        assert process.poll() is None, process.communicate()
        found = list((tmp_path / "run").glob("jobs/*/status.json"))
        return found and status()["step"] >= 5

    until(is_training, "step 5", 90)
    [victim] = [rank["pid"] for rank in status()["ranks"] if rank["rank"] == 2]
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["generations"] > 1
    local = shell.smlt(*job, "--run-dir", tmp_path / "local", "--json", "--quiet").check(0)
    assert local.summary["weights_digest"] == summary["weights_digest"]
    logs = shell.smlt("logs", summary["job_id"], "--run-dir", tmp_path / "run").check(0).out
    assert {line.split("|")[0].strip() for line in logs.splitlines()} == {
        f"rank {rank}" for rank in range(4)
    }
    shell.smlt("destroy", "--objects", bucket).check(0)
    assert tagged(account) == []


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_mnist_over_many_generations(shell, account, bucket, valkey, tmp_path):
    """Functions of 20 s, as if a job of hours ran in those of 15 minutes."""
    prepare = [sys.executable, str(EXAMPLES / "prepare.py")]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    stores = ("--objects", bucket, "--parameters", valkey, "--run-dir", tmp_path / "run")
    job = ("train", f"{EXAMPLES / 'softmax.py'}:Softmax", "--workers", "4", "--epochs", "40")
    aws = ("--platform", "aws", "--yes", "--function-timeout", "20s", "--json", "--quiet")
    trained = shell.smlt(*job, *stores, *aws, limit_s=400).check(0)
    assert trained.summary["generations"] >= 3
    local = shell.smlt(*job, "--run-dir", tmp_path / "l", "--json", "--quiet", limit_s=200).check(0)
    assert local.summary["weights_digest"] == trained.summary["weights_digest"]
    print({name: trained.summary[name] for name in ("generations", "seconds", "cost_usd")})
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
def test_a_store_that_only_functions_reach_is_reached_through_one(shell, account, bucket, valkey):
    """Training, and going on by another client: the direct path is closed to both."""
    closed = {"TEST_CLOSED_PORT": valkey.rpartition(":")[2]}
    stores = ("--objects", bucket, "--parameters", valkey)
    job = ("--workers", "4", "--steps", "20", "--json", "--quiet")
    aws = ("--platform", "aws", "--yes", "--deadline", "1h", "--no-adapt")
    begin = len(account.calls)
    trained = shell.smlt("train", SMALL, *stores, *aws, *job, **closed).check(0)
    assert trained.summary["state"] == "completed"
    local = shell.smlt("train", SMALL, *job).check(0)
    assert local.summary["weights_digest"] == trained.summary["weights_digest"]
    names = [f["FunctionName"] for f in account.client("lambda").list_functions()["Functions"]]
    assert [name for name in names if name.endswith("-gateway")]
    calls = account.calls[begin:].count(("lambda", "Invoke"))
    assert calls > 4  # the workers' own
    print(f"{calls - 4} calls of the gateway in {trained.summary['seconds']:.1f} s")
    longer = shell.smlt("resume", "--steps", "25", "--json", "--quiet", **closed).check(0)
    assert longer.summary["steps"] == 25
    shell.smlt("destroy", "--objects", bucket).check(0)
    assert tagged(account) == []


@pytest.mark.slow
def test_a_store_that_nobody_reaches(shell, bucket):
    stores = ("--objects", bucket, "--parameters", "redis://127.0.0.1:1")
    ended = shell.smlt("train", SMALL, *stores, "--platform", "aws", "--yes").check(1)
    assert "neither this machine nor a function reaches the parameter store" in ended.sentence
    assert "subnets and security_groups" in ended.sentence
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
def test_data_in_a_file_system_that_functions_mount(shell, account, bucket, valkey, tmp_path):
    (tmp_path / "mounted.py").write_text(MOUNTED)
    (tmp_path / "small.py").write_bytes(Path(SMALL.partition(":")[0]).read_bytes())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "here.txt").write_text("only on this machine")
    folder = account.folder / "efs"
    folder.mkdir()
    np.save(folder / "there.npy", np.arange(5))
    private = {
        "SMLT_AWS_EFS": ACCESS_POINT,
        "SMLT_AWS_EFS_DATA": "imagenet",
        "SMLT_AWS_SUBNETS": "subnet-1",
        "SMLT_AWS_SECURITY_GROUPS": "sg-1",
    }
    # Where it is mounted is here a folder that functions see.
    account.function_variables["SMLT_DATA"] = str(folder)
    stores = ("--objects", bucket, "--parameters", valkey)
    aws = ("--platform", "aws", "--yes", "--workers", "2", "--steps", "5", "--json", "--quiet")
    try:
        shell.smlt("train", "mounted.py:Mounted", *stores, *aws, **private).check(0)
        seen = shell.smlt("doctor", *stores).check(0).out
        assert "ok    data from there: answers" in seen
        (folder / "there.npy").unlink()
        seen = shell.smlt("doctor", *stores).check(1).out
        assert f"FAULT data from there: {folder} is empty" in seen
    finally:
        account.function_variables.clear()
    functions = account.client("lambda").list_functions()["Functions"]
    [worker] = [f for f in functions if f["FunctionName"].endswith("-1769")]
    assert worker["Environment"]["Variables"]["SMLT_DATA"] == "/mnt/data/imagenet"
    listed = account.client("s3").list_objects_v2(Bucket=bucket.split("/")[2])["Contents"]
    assert not [entry for entry in listed if "/data/" in entry["Key"]]
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.slow
def test_what_is_in_a_package(shell):
    shown = json.loads(shell.smlt("package", SMALL, "--json").check(0).out)
    assert {part["name"].split()[0] for part in shown["parts"]} >= {"your", "smlt", "numpy"}
    assert shown["code_bytes"] < 5e6


def test_a_job_on_aws_wants_a_budget_or_a_word(shell, bucket):
    stores = ("--objects", bucket, "--parameters", bucket, "--platform", "aws")
    ended = shell.smlt("train", SMALL, *stores).check(2)
    assert "--budget" in ended.sentence
    assert "--yes" in ended.sentence
    password = ("--parameters", "rediss://me:hunter2@cache:6379")
    ended = shell.smlt("train", SMALL, *stores, *password, "--yes").check(2)
    assert "password_from=" in ended.sentence
    assert "hunter2" not in ended.err
    plain = ("--parameters", "redis://cache:6379", "--yes")
    assert "plaintext=true" in shell.smlt("train", SMALL, *stores, *plain).check(2).sentence
