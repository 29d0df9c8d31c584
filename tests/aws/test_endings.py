"""However a job on AWS ends, no function runs on: what runs costs money."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.io.servers import ValkeyServer
from tests.jobs.harness import SMALL, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LONG = ("--workers", "4", "--steps", "100000", "--platform", "aws", "--yes", "--json", "--quiet")


@pytest.fixture
def valkey(tmp_path):
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield f"redis://127.0.0.1:{server.port}"


def busy(account):
    """The functions that run at this moment."""
    return [one["function"] for one in account.say("environments") if one["state"] == "busy"]


def started(shell, bucket, valkey, *options, **variables):
    """A job that has trained some steps."""
    stores = ("--objects", bucket, "--parameters", valkey)
    process = shell.start("train", SMALL, *stores, *LONG, *options, **variables)

    def is_training():
        assert process.poll() is None, process.communicate()
        found = list((shell.folder / ".smlt").glob("jobs/*/status.json"))
        return found and json.loads(found[0].read_text())["step"] >= 5

    until(is_training, "step 5", 90)
    return process


def check_nothing_runs(account, bucket, shell, limit_s):
    begin = time.monotonic()
    until(lambda: not busy(account), "the end of all functions", limit_s)
    print(f"nothing runs {time.monotonic() - begin:.1f} s after the client's end")
    shell.smlt("destroy", "--objects", bucket).check(0)


@pytest.mark.parametrize("through_gateway", [False, True], ids=["near", "gateway"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(shell, account, bucket, valkey, times, through_gateway):
    closed = {"TEST_CLOSED_PORT": valkey.rpartition(":")[2]} if through_gateway else {}
    process = started(shell, bucket, valkey, **closed)
    assert busy(account)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["state"] == "stopped"
    check_nothing_runs(account, bucket, shell, 20)


@pytest.mark.parametrize("now", [False, True])
def test_stop(shell, account, bucket, valkey, now):
    process = started(shell, bucket, valkey)
    stopped = shell.smlt("stop", *(["--now"] if now else [])).check(0)
    assert stopped.out.startswith("stopped job")
    process.communicate(timeout=60)
    assert process.returncode == 130
    check_nothing_runs(account, bucket, shell, 20)


def test_stop_of_a_job_whose_client_was_killed(shell, account, bucket, valkey):
    process = started(shell, bucket, valkey)
    process.kill()
    process.communicate()
    stopped = shell.smlt("stop").check(0)
    assert stopped.out.startswith("stopped job")
    check_nothing_runs(account, bucket, shell, 20)


def test_a_client_that_was_killed(shell, account, bucket, valkey):
    """The workers notice by its lease, save, and leave."""
    process = started(shell, bucket, valkey)
    process.kill()
    process.communicate()
    check_nothing_runs(account, bucket, shell, 60)


def test_a_budget(shell, account, bucket, valkey):
    stores = ("--objects", bucket, "--parameters", valkey)
    budget = ("--budget", "0.0005", "--no-adapt")
    ended = shell.smlt("train", SMALL, *stores, *LONG, *budget, limit_s=120)
    assert ended.summary["cost_usd"] <= 0.0005 * 1.05, ended.summary
    assert ended.summary["state"] == "stopped"
    check_nothing_runs(account, bucket, shell, 20)
