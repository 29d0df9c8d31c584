"""What the doctor finds, and what it says to do about it; what AWS answers is made up here."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate

import pytest

from smlt import __version__
from smlt.aws.doctor import examine
from smlt.errors import CloudError, ConfigError

NAME = "here-1234"
FUNCTION = f"smlt-{NAME}-1769"


class Body:
    def __init__(self, data):
        self._data = data

    async def read(self):
        return self._data


class Answers:
    """An Api whose answers are set before it is asked."""

    region = "us-east-1"

    def __init__(self, clock):
        self.now = clock
        self.free, self.total, self.asked = 990, 1000, []
        self.functions = [FUNCTION]
        self.seen = {
            "smlt": __version__,
            "python": "3.12",
            "machine": "x86_64",
            "time": clock,
            "objects": "",
            "parameters": "",
            "data": "",
        }
        self.failing = {}

    async def call(self, service, operation, doing, **given):
        if operation in self.failing:
            raise self.failing[operation]
        if operation == "get_caller_identity":
            headers = {"date": formatdate(self.now, usegmt=True)}
            return {"Arn": "arn:me", "ResponseMetadata": {"HTTPHeaders": headers}}
        if operation == "get_account_settings":
            limits = {
                "UnreservedConcurrentExecutions": self.free,
                "ConcurrentExecutions": self.total,
            }
            return {"AccountLimit": limits}
        assert operation == "invoke"
        assert given["Qualifier"] == "7"
        self.question = json.loads(given["Payload"])
        return {"Payload": Body(json.dumps(self.seen).encode())}

    async def all(self, service, operation, doing, key, **given):
        if operation in self.failing:
            raise self.failing[operation]
        if service == "service-quotas":
            return self.asked
        if operation == "list_functions":
            return [{"FunctionName": name} for name in self.functions]
        return [{"Version": "$LATEST"}, {"Version": "7"}]


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    return Answers(1_800_000_000.0)


def findings(api, parameters="memory://doctor", workers=4):
    found = asyncio.run(examine(api, NAME, "memory://doctor", parameters, workers))
    return {finding.what: finding for finding in found}


def test_all_is_well(api):
    found = findings(api)
    assert [name for name, finding in found.items() if not finding.ok] == []
    assert {
        *("region", "credentials", "clock", "object store", "parameter store from here"),
        *("concurrency", "function", "clock from there", "object store from there"),
        *("parameter store from there", "data from there"),
    } == found.keys()


def faults(api, **options):
    return {name: f.detail for name, f in findings(api, **options).items() if not f.ok}


def test_a_region_and_credentials_come_first(api):
    api.failing["get_caller_identity"] = ConfigError("asking AWS failed: no credentials")
    found = findings(api)
    assert list(found) == ["region", "credentials"]
    assert not found["credentials"].ok
    api.region = None
    assert "AWS_REGION" in findings(api)["region"].detail


def test_a_clock_that_is_off(api):
    api.now += 600
    api.seen["time"] += 300
    found = faults(api)
    assert found.keys() == {"clock", "clock from there"}
    assert "-600 s off AWS's" in found["clock"]
    assert "NTP" in found["clock"]
    assert "-300 s off the function's" in found["clock from there"]


def test_a_quota_that_is_too_small_and_how_it_is_raised(api):
    api.free = 100
    text = faults(api, workers=150)["concurrency"]
    assert "may run 100 functions at a time" in text
    assert "--service-code lambda --quota-code L-B99A9384 --desired-value 1050" in text
    api.asked = [{"Status": "PENDING", "DesiredValue": 5000.0}]
    assert "wait for AWS to grant the 5000" in faults(api, workers=150)["concurrency"]
    api.failing["list_requested_service_quota_change_history_by_quota"] = ConfigError("denied")
    assert "request-service-quota-increase" in faults(api, workers=150)["concurrency"]


def test_what_a_function_does_not_reach(api):
    api.seen |= {
        "parameters": "the parameter store cannot be reached",
        "objects": "the bucket refuses",
        "data": "/mnt/data is empty",
    }
    found = faults(api)
    assert "subnets and security_groups" in found["parameter store from there"]
    assert "role" in found["object store from there"]
    assert "2049" in found["data from there"]


def test_a_store_that_only_functions_reach_is_no_fault(api, monkeypatch):
    monkeypatch.setattr("smlt.aws.doctor._REACH_S", 0.1)
    found = findings(api, parameters="redis://127.0.0.1:1")
    assert found["parameter store from here"].ok
    assert "gateway" in found["parameter store from here"].detail
    assert api.question["parameters"] == "redis://127.0.0.1:1"


def test_another_version_there(api):
    api.seen |= {"smlt": "0.0.1", "python": "3.13"}
    text = faults(api)["function"]
    assert f"smlt 0.0.1 on Python 3.13, x86_64; here it is {__version__}: deploy again" in text


def test_no_function_yet_and_one_that_fails(api):
    api.functions = []
    assert "none is deployed yet" in findings(api)["function"].detail
    api.functions = [FUNCTION]
    api.seen = {"errorMessage": "No module named 'smlt'"}
    assert "No module named 'smlt'; deploy again" in faults(api)["function"]
    api.failing["invoke"] = CloudError("invoking it failed: busy")
    assert faults(api)["function"] == "invoking it failed: busy"
