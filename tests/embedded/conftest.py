"""One embedded cloud for most tests, real clients to it, and the rule about skipped isolation."""

import asyncio
import base64
import io
import json
import os
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from smlt.embedded import EmbeddedCloud

HANDLER = Path(__file__).with_name("handler_app.py")
ALLOWED_SKIPS = Path(__file__).parents[1] / "allowed_skips.txt"
ROLE = "arn:aws:iam::000000000000:role/smlt"

_skips = []


def pytest_runtest_logreport(report):
    if report.skipped and "isolation" in report.keywords and isinstance(report.longrepr, tuple):
        _skips.append((report.nodeid, report.longrepr[2].removeprefix("Skipped: ")))


def unlisted(skips, allowed):
    """The skips whose reason is on no line of the list."""
    return [(test, reason) for test, reason in skips if reason not in allowed]


def allowed_reasons():
    lines = (line.strip() for line in ALLOWED_SKIPS.read_text().splitlines())
    return {line for line in lines if line and not line.startswith("#")}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """In CI a test of isolation may be skipped only for a reason that the repository lists."""
    forbidden = unlisted(_skips, allowed_reasons()) if os.environ.get("CI") == "true" else []
    for test, reason in forbidden:
        print(f"\n{test} was skipped for a reason not in {ALLOWED_SKIPS.name}: {reason}")
    if forbidden and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def zipped(files):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return body.getvalue()


APP_ZIP = zipped({"app.py": HANDLER.read_text()})


def wait_until(condition, what, limit_s=10.0):
    """Poll until the condition gives something true, and return it."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)


@contextmanager
def running_cloud(run_dir, **options):
    with asyncio.Runner() as runner:
        cloud = EmbeddedCloud(run_dir, **options)
        runner.run(cloud.__aenter__())
        try:
            yield cloud
        finally:
            runner.run(cloud.__aexit__(None, None, None))


class Client:
    """boto3 against an embedded cloud, as short as the tests like it."""

    def __init__(self, endpoint):
        options = {
            "endpoint_url": endpoint,
            "region_name": "us-east-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "config": Config(
                # Off, so that it is the embedded cloud that refuses what lies outside a limit.
                parameter_validation=False,
                retries={"total_max_attempts": 1},
                read_timeout=60,
                max_pool_connections=32,
            ),
        }
        self.endpoint = endpoint
        self.api = boto3.client("lambda", **options)
        self.logs = boto3.client("logs", **options)
        self._numbers = count(1)

    def create(self, files=None, *, variables=None, memory=256, **options):
        name = options.pop("name", None) or f"f{next(self._numbers)}-{os.urandom(3).hex()}"
        self.api.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Role=ROLE,
            Handler=options.pop("handler", "app.handler"),
            Code={"ZipFile": zipped(files) if files else APP_ZIP},
            MemorySize=memory,
            Environment={"Variables": variables or {}},
            **{"Timeout": 10, **options},
        )
        return name

    def invoke(self, name, event=None, **options):
        """The answer: result (parsed), error, log (tail), id, version."""
        answer = self.api.invoke(
            FunctionName=name, Payload=json.dumps(event or {}), LogType="Tail", **options
        )
        return {
            "result": json.loads(answer["Payload"].read()),
            "error": answer.get("FunctionError"),
            "log": base64.b64decode(answer["LogResult"]).decode(),
            "id": answer["ResponseMetadata"]["RequestId"],
            "version": answer["ExecutedVersion"],
        }

    def admin(self, path, method="GET", body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoint + path, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"null")

    def environments(self, name=None):
        found = self.admin("/_smlt/environments")
        return [one for one in found if name in (None, one["function"])]

    def log(self, name):
        """All messages of a function, oldest first."""
        pages = self.logs.get_paginator("filter_log_events").paginate(
            logGroupName=f"/aws/lambda/{name}"
        )
        return [event["message"].rstrip("\n") for page in pages for event in page["events"]]


@pytest.fixture(scope="session")
def cloud(tmp_path_factory):
    # The run directory lies below /tmp: what functions need must stay visible in their own /tmp.
    options = ["--init-limit", "3", "--retry-delay", "0.1", "0.1", "--concurrency", "30"]
    with running_cloud(tmp_path_factory.mktemp("run"), options=options) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def client(cloud):
    return Client(cloud.endpoint)


@pytest.fixture(scope="session")
def echo(client):
    """A function that several tests share."""
    return client.create(name="echo", memory=1769)
