"""A Valkey server for tests that several ranks share."""

from __future__ import annotations

import pytest

from smlt.io.stores import open_parameter_store
from tests.io.servers import ValkeyServer


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    with ValkeyServer(tmp_path_factory.mktemp("valkey") / "valkey.sock") as server:
        yield server


@pytest.fixture
def open_valkey(valkey):
    return lambda: open_parameter_store(valkey.url, time_limit_s=10)
