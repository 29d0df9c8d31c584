"""Each of Lambda's limits, tripped through boto3 by a real handler in a real zip."""

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from embedded.conftest import Client, running_cloud, wait_until
from embedded.test_invoke import report_of

SYNC_LIMIT = 6_291_556
ASYNC_LIMIT = 1_048_576


@pytest.fixture(scope="module")
def contained(cloud):
    """The shared cloud, where it has what these tests are about."""
    if not cloud.isolation["private_tmp"] or not cloud.isolation["cpu"]:
        pytest.skip(f"this host does not permit full isolation: {' '.join(cloud.notices)}")
    return cloud


@pytest.mark.isolation
def test_memory_over_the_limit_is_killed_and_says_oom(client, contained):
    name = client.create(memory=885)
    answer = client.invoke(name, {"do": "allocate", "mb": 1100, "s": 1})
    assert answer["error"] == "Unhandled"
    assert answer["result"]["errorType"] == "Runtime.OutOfMemory"
    assert answer["result"]["errorMessage"].endswith("signal: killed")
    assert "out of memory (OOM)" in answer["log"]
    assert report_of(answer)["error"] == "Runtime.OutOfMemory"
    assert client.invoke(name, {"do": "allocate", "mb": 50})["result"] == 50 << 20


@pytest.mark.isolation
def test_memory_of_a_child_counts(client, contained):
    name = client.create(memory=256)
    answer = client.invoke(name, {"do": "allocate_in_child", "mb": 400})
    assert answer["result"]["errorType"] == "Runtime.OutOfMemory"


@pytest.mark.isolation
def test_memory_used_is_reported(client, contained):
    name = client.create(memory=512)
    answer = client.invoke(name, {"do": "allocate", "mb": 200, "s": 0.4})
    assert 200 <= int(report_of(answer)["used"]) < 260


@pytest.mark.isolation
def test_files_in_tmp_are_not_memory(client, contained):
    name = client.create(memory=300, Timeout=30)
    answer = client.invoke(name, {"do": "fill_tmp", "mb": 400, "keep": True})
    assert answer["result"] == {"errno": 0, "mb": 400}
    assert int(report_of(answer)["used"]) < 100


@pytest.mark.isolation
@pytest.mark.parametrize("memory", [442, 885])
def test_cpu_share_follows_memory(client, contained, memory):
    name = client.create(memory=memory)
    used_s = client.invoke(name, {"do": "burn", "s": 1.0})["result"]
    # From above only: others on this machine may take CPU from it, nobody can give it more.
    assert 0.02 < used_s < memory / 1769 * 1.15 + 0.03


@pytest.mark.isolation
def test_init_has_the_full_cpu(client, contained):
    name = client.create(memory=128, variables={"AT_INIT": "burn"})
    # 0.3 CPU seconds at 128 MB would take over 4 s of wall time.
    assert client.invoke(name, {"do": "init_burn"})["result"] < 2.0


@pytest.mark.isolation
def test_tmp_has_the_size_of_the_ephemeral_storage(client, contained):
    name = client.create(memory=1769, EphemeralStorage={"Size": 512}, Timeout=30)
    found = client.invoke(name, {"do": "fill_tmp", "mb": 600})["result"]
    assert found["errno"] == errno.ENOSPC
    assert 500 <= found["mb"] <= 512


@pytest.mark.isolation
def test_tmp_is_private_and_lasts_as_long_as_the_environment(client, contained, tmp_path):
    one, other = client.create(), client.create()
    before = client.invoke(one, {"do": "tmp", "write": "mine"})["result"]
    assert "mine" not in before
    assert "mine" in client.invoke(one, {"do": "tmp"})["result"]
    assert "mine" not in client.invoke(other, {"do": "tmp"})["result"]


@pytest.mark.isolation
def test_shared_memory_is_absent_and_other_devices_work(client, contained, echo):
    found = client.invoke(echo, {"do": "devices"})["result"]
    assert found["shm"] is False
    assert found["noise"] == 8
    assert found["lock"] != "made"


@pytest.mark.isolation
def test_visible_paths_below_tmp_stay_visible(tmp_path):
    data, hidden = tmp_path / "data" / "x.txt", tmp_path / "hidden.txt"
    data.parent.mkdir()
    data.write_text("seen")
    hidden.write_text("hidden")
    options = {"visible": [data.parent], "parameter_store": False}
    with running_cloud(tmp_path / "run", **options) as cloud:
        client = Client(cloud.endpoint)
        name = client.create()
        assert client.invoke(name, {"do": "read", "path": str(data)})["result"] == "seen"
        if cloud.isolation["private_tmp"] and str(tmp_path).startswith("/tmp/"):
            answer = client.invoke(name, {"do": "read", "path": str(hidden)})
            assert answer["result"]["errorType"] == "FileNotFoundError"


@pytest.mark.parametrize("mode", ["watchdog", "none"])
def test_without_isolation_it_says_so_and_still_runs(tmp_path, mode):
    options = {"isolation": mode, "parameter_store": False}
    with running_cloud(tmp_path / "run", **options) as cloud:
        client = Client(cloud.endpoint)
        assert cloud.isolation["mode"] == mode
        assert any("not enforced" in n or "no limit" in n for n in cloud.notices)
        name = client.create(memory=256, Timeout=2)
        answer = client.invoke(name, {"do": "allocate_in_child", "mb": 400})
        if mode == "watchdog":
            assert answer["result"]["errorType"] == "Runtime.OutOfMemory"
            assert "of 256 MB and was killed" in answer["log"]
        else:
            assert answer["result"]["errorType"] == "Sandbox.Timedout"


def test_request_over_6_mb_is_refused(client, echo):
    padding = SYNC_LIMIT - len('{"x": ""}')
    body = json.dumps({"x": "x" * padding}).encode()
    assert client.api.invoke(FunctionName=echo, Payload=body, InvocationType="DryRun")
    with pytest.raises(ClientError, match="RequestTooLargeException"):
        client.api.invoke(FunctionName=echo, Payload=body + b" ")


def test_event_over_1_mb_is_refused(client, echo):
    with pytest.raises(ClientError, match="RequestTooLargeException"):
        client.api.invoke(
            FunctionName=echo, InvocationType="Event", Payload=b" " * (ASYNC_LIMIT + 1)
        )


def test_response_over_6_mb_is_an_error_of_the_function(client):
    name = client.create(memory=1769)
    assert len(client.invoke(name, {"do": "big", "bytes": SYNC_LIMIT - 2})["result"]) > 6_000_000
    answer = client.invoke(name, {"do": "big", "bytes": SYNC_LIMIT - 1})
    assert answer["error"] == "Unhandled"
    assert answer["result"]["errorType"] == "Function.ResponseSizeTooLarge"
    assert client.invoke(name)["error"] is None


def test_body_that_is_no_json_is_refused(client, echo):
    with pytest.raises(ClientError, match="InvalidRequestContentException"):
        client.api.invoke(FunctionName=echo, Payload=b"{no json")


def test_reserved_concurrency_throttles_the_next_call(client):
    name = client.create()
    client.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=2)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(client.invoke, name, {"do": "sleep", "s": 2}) for _ in range(2)]
        wait_until(
            lambda: [e["state"] for e in client.environments(name)] == ["busy"] * 2, "two busy"
        )
        with pytest.raises(ClientError, match="Rate Exceeded") as caught:
            client.invoke(name)
        assert [future.result()["result"] for future in running] == ["awake"] * 2
    error = caught.value.response
    assert error["Error"]["Code"] == "TooManyRequestsException"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert error["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert client.invoke(name)["error"] is None
    client.api.delete_function_concurrency(FunctionName=name)


def test_account_concurrency_throttles_all_functions_together(tmp_path):
    options = {"concurrency": 2, "parameter_store": False}
    with running_cloud(tmp_path / "run", **options) as cloud:
        client = Client(cloud.endpoint)
        one, other = client.create(), client.create()
        threads = [
            threading.Thread(target=client.invoke, args=(name, {"do": "sleep", "s": 1.5}))
            for name in (one, other)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: [e["state"] for e in client.environments()] == ["busy"] * 2, "two busy")
        with pytest.raises(ClientError, match="Rate Exceeded") as caught:
            client.invoke(one)
        assert caught.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
        for thread in threads:
            thread.join()
