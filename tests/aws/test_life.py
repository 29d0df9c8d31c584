"""The whole life of a deployment, by the very code that runs against AWS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smlt.aws.release import TAG
from tests.io.servers import ValkeyServer
from tests.jobs.harness import SMALL

EXAMPLES = Path(__file__).parents[2] / "examples" / "mnist"


@pytest.fixture
def valkey(tmp_path):
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield f"redis://127.0.0.1:{server.port}"


def tagged(account):
    """What AWS's own index knows of any deployment."""
    found = account.client("resourcegroupstaggingapi").get_resources(TagFilters=[{"Key": TAG}])
    return [entry["ResourceARN"] for entry in found["ResourceTagMappingList"]]


def test_a_deployment_from_its_package_to_nothing(shell, account, bucket, valkey):
    stores = ("--objects", bucket, "--parameters", valkey)
    planned = shell.smlt("deploy", SMALL, *stores, "--dry-run").check(0)
    assert "role smlt-here-" in planned.out
    assert account.client("lambda").list_functions()["Functions"] == []
    assert not account.client("s3").list_objects_v2(Bucket=bucket.split("/")[2]).get("Contents")

    shell.smlt("deploy", SMALL, *stores).check(0)
    assert tagged(account)
    again = shell.smlt("deploy", SMALL, *stores).check(0)
    assert "changed 0 of 4 things" in again.out

    job = ("train", SMALL, *stores, "--platform", "aws", "--yes", "--json", "--quiet")
    trained = shell.smlt(*job, "--workers", "4", "--steps", "20").check(0)
    assert trained.summary["state"] == "completed"
    assert trained.summary["billed_gb_s"] > 0
    local = shell.smlt("train", SMALL, "--workers", "4", "--steps", "20", "--json", "--quiet")
    assert local.check(0).summary["weights_digest"] == trained.summary["weights_digest"]

    shell.smlt("destroy", "--objects", bucket).check(0)
    assert account.client("lambda").list_functions()["Functions"] == []
    assert tagged(account) == []


def test_what_is_in_a_package(shell, bucket):
    stores = ("--objects", bucket, "--parameters", bucket)
    shown = json.loads(shell.smlt("package", SMALL, *stores, "--json").check(0).out)
    assert {part["name"].split()[0] for part in shown["parts"]} >= {"your", "smlt", "numpy"}
