"""Real servers for the stores' tests, always stopped."""

from __future__ import annotations

import itertools

import pytest

pytest.register_assert_rewrite("object_store_contract", "parameter_store_contract")

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
