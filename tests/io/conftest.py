"""Real servers for the stores' tests, always stopped."""

from __future__ import annotations

import itertools
import os

import pytest

pytest.register_assert_rewrite("object_store_contract", "parameter_store_contract")

from s3_servers import CREDENTIALS, LocalBucket, S3Server  # noqa: E402
from servers import ValkeyServer  # noqa: E402

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("valkey") / "valkey.sock") as server:
        yield server


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, to be killed, stopped or filled."""
    with ValkeyServer(tmp_path / "valkey.sock") as server:
        yield server


@pytest.fixture
def name():
    """A prefix that no other test has, since servers are shared."""
    return f"test{next(_numbers)}:"


@pytest.fixture(scope="session")
def moto():
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def localbucket(tmp_path_factory):
    with LocalBucket(tmp_path_factory.mktemp("localbucket")) as server:
        yield server


@pytest.fixture
def credentials(monkeypatch, tmp_path):
    """What a process has that may use the test's buckets, and nothing of the machine's own."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
