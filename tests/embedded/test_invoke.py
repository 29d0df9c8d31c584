"""Invocations through boto3: answers, errors, logs and bill, and the life of an environment."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from embedded.conftest import wait_until

REPORT = re.compile(
    r"REPORT RequestId: (?P<id>[0-9a-f-]{36})\tDuration: (?P<duration>\d+\.\d\d) ms\t"
    r"Billed Duration: (?P<billed>\d+) ms\tMemory Size: (?P<size>\d+) MB\t"
    r"Max Memory Used: (?P<used>\d+) MB\t(Init Duration: (?P<init>\d+\.\d\d) ms\t)?"
    r"(Status: (?P<status>\w+)\t)?(Error Type: (?P<error>[\w.]+)\t)?"
)


def report_of(answer):
    return REPORT.search(answer["log"]).groupdict()


def test_invoke_returns_what_the_handler_returned(client, echo):
    answer = client.invoke(echo, {"batch": [1, 2], "name": "Zürich"})
    assert answer["error"] is None
    assert answer["result"]["event"] == {"batch": [1, 2], "name": "Zürich"}
    assert answer["result"]["request_id"] == answer["id"]
    assert answer["result"]["arn"].endswith(":function:echo:$LATEST")
    assert 9_000 < answer["result"]["remaining_ms"] <= 10_000
    assert answer["version"] == "$LATEST"


def test_invoke_a_second_time_finds_the_environment_warm(client):
    name = client.create()
    cold, warm = client.invoke(name), client.invoke(name)
    assert cold["result"]["pid"] == warm["result"]["pid"]
    assert (cold["result"]["calls"], warm["result"]["calls"]) == (1, 2)
    assert report_of(cold)["init"] is not None
    assert report_of(warm)["init"] is None


def test_invoke_at_once_gets_an_environment_each(client):
    name = client.create()
    with ThreadPoolExecutor(4) as pool:
        events = [{"do": "sleep", "s": 0.5}] * 4
        assert [a["result"] for a in pool.map(lambda e: client.invoke(name, e), events)] == [
            "awake"
        ] * 4
    assert len({one["pid"] for one in client.environments(name)}) == 4


def test_report_bills_init_and_duration_rounded_up_to_a_millisecond(client):
    name = client.create(memory=300)
    answer = client.invoke(name, {"do": "sleep", "s": 0.05})
    report = report_of(answer)
    total = float(report["duration"]) + float(report["init"])
    assert float(report["duration"]) >= 50
    assert total <= int(report["billed"]) <= total + 1.01
    assert (report["id"], report["size"], report["status"]) == (answer["id"], "300", None)
    assert 0 < int(report["used"]) < 100
    lines = answer["log"].splitlines()
    assert lines[0] == f"START RequestId: {answer['id']} Version: $LATEST"
    assert lines[-2] == f"END RequestId: {answer['id']}"
    bill = client.admin("/_smlt/bill")[name]
    assert bill["billed_ms"] == int(report["billed"])
    assert bill["gb_s"] == pytest.approx(int(report["billed"]) / 1000 * 300 / 1024)


def test_log_holds_prints_and_stderr_between_start_and_end(client, echo):
    log = client.invoke(echo, {"do": "print", "lines": ["one", "", "three"]})["log"]
    assert log.splitlines()[1:5] == ["one", "", "three", "to stderr"]


def test_log_tail_is_the_last_4_kb(client, echo):
    log = client.invoke(echo, {"do": "print", "lines": ["x" * 999] * 9 + ["last"]})["log"]
    assert len(log) == 4096
    assert "last" in log


def test_exception_gives_its_type_message_and_stack_and_keeps_the_environment(client):
    name = client.create()
    answer = client.invoke(name, {"do": "raise"})
    assert answer["error"] == "Unhandled"
    assert answer["result"]["errorType"] == "ValueError"
    assert answer["result"]["errorMessage"] == "the batch is spoiled"
    assert "in do_raise" in "".join(answer["result"]["stackTrace"])
    assert "[ERROR] ValueError: the batch is spoiled\nTraceback" in answer["log"]
    assert client.invoke(name)["result"]["calls"] == 2


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"do": "exit", "status": 3}, "Runtime exited with error: exit status 3"),
        ({"do": "exit", "status": 0}, "Runtime exited without providing a reason"),
        ({"do": "signal", "signal": 9}, "Runtime exited with error: signal: killed"),
        ({"do": "signal", "signal": 11}, "Runtime exited with error: signal: segv"),
    ],
)
def test_exit_of_the_process_is_an_exit_error_and_the_next_call_starts_cold(client, event, text):
    name = client.create()
    answer = client.invoke(name, event)
    assert answer["error"] == "Unhandled"
    assert answer["result"]["errorType"] == "Runtime.ExitError"
    assert answer["result"]["errorMessage"] == f"RequestId: {answer['id']} Error: {text}"
    report = report_of(answer)
    assert (report["status"], report["error"]) == ("error", "Runtime.ExitError")
    assert client.invoke(name)["result"]["calls"] == 1


def test_time_limit_kills_the_process_and_its_children(client):
    name = client.create(Timeout=1)
    answer = client.invoke(name, {"do": "child", "s": 30})
    assert answer["result"]["errorType"] == "Sandbox.Timedout"
    assert answer["result"]["errorMessage"].endswith("Error: Task timed out after 1.00 seconds")
    assert f"{answer['id']} Task timed out after 1.00 seconds" in answer["log"]
    report = report_of(answer)
    assert report["status"] == "timeout"
    assert 1000 <= float(report["duration"]) < 2500
    wait_until(lambda: not client.environments(name), "the environment's end")


def test_environment_that_dies_between_invocations_is_replaced(client):
    name = client.create()
    first = client.invoke(name)["result"]["pid"]
    os.kill(client.environments(name)[0]["pid"], signal.SIGKILL)
    wait_until(lambda: not client.environments(name), "the environment's end")
    second = client.invoke(name)
    assert second["error"] is None
    assert second["result"]["pid"] != first


def test_environment_is_frozen_between_invocations(client):
    name = client.create(memory=1769)
    client.invoke(name, {"do": "tick_in_background"})
    [pid] = [one["pid"] for one in client.environments(name)]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T", "the freeze")
    before = client.invoke(name, {"do": "ticks"})["result"]
    time.sleep(0.5)  # long enough for 50 ticks, if the thread could run
    after = client.invoke(name, {"do": "ticks"})["result"]
    assert after - before < 10
    during = client.invoke(name, {"do": "ticks", "s": 0.5})["result"]
    assert during - after > 20


def test_thread_that_ends_the_process_late_fails_the_next_invocation(client):
    name = client.create()
    assert client.invoke(name, {"do": "exit_later", "s": 0.1})["error"] is None
    answer = client.invoke(name, {"do": "sleep", "s": 5})
    assert answer["result"]["errorMessage"].endswith("exit status 5")


def test_environment_has_the_variables_that_lambda_sets(client):
    name = client.create(variables={"MODEL": "small", "TZ": "Europe/Zurich"}, memory=512)
    found = client.invoke(name, {"do": "environ"})["result"]
    assert found["MODEL"] == "small"
    assert found["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert found["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
    assert found["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "512"
    assert found["AWS_LAMBDA_LOG_GROUP_NAME"] == f"/aws/lambda/{name}"
    assert found["AWS_LAMBDA_LOG_STREAM_NAME"] == client.environments(name)[0]["log_stream"]
    assert found["AWS_REGION"] == "us-east-1"
    assert found["_HANDLER"] == "app.handler"
    assert found["TZ"] == "Europe/Zurich"
    assert "HOME" not in found
    assert "PYTEST_CURRENT_TEST" not in found


def test_task_root_is_the_working_directory_and_shadows_installed_modules(client):
    app = (
        "import colorsys, os\n"
        "def handler(event, context): return [colorsys.WHOSE, os.getcwd(), os.listdir('.')]"
    )
    name = client.create({"app.py": app, "colorsys.py": "WHOSE = 'mine'", "data/x.txt": "x"})
    whose, directory, listing = client.invoke(name)["result"]
    assert whose == "mine"
    assert {"app.py", "data"} <= set(listing)
    assert directory == client.invoke(name)["result"][1]


def test_client_context_reaches_the_handler(client, echo):
    import base64

    encoded = base64.b64encode(json.dumps({"custom": {"job": "7"}}).encode()).decode()
    assert client.invoke(echo, ClientContext=encoded)["result"]["client_context"] == {"job": "7"}


def test_dry_run_runs_nothing(client):
    name = client.create()
    answer = client.api.invoke(FunctionName=name, InvocationType="DryRun")
    assert answer["StatusCode"] == 204
    assert client.environments(name) == []


def test_invoke_by_arn_and_qualifier(client):
    name = client.create()
    client.api.publish_version(FunctionName=name)
    arn = client.api.get_function_configuration(FunctionName=name)["FunctionArn"]
    assert client.invoke(arn)["version"] == "$LATEST"
    assert client.invoke(f"{arn}:1")["version"] == "1"
    assert client.invoke(name, Qualifier="1")["result"]["version"] == "1"
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.invoke(name, Qualifier="9")


def test_import_error_is_reported_after_a_second_attempt(client):
    name = client.create({"app.py": "import no_such_module\n"})
    answer = client.invoke(name)
    assert answer["result"]["errorType"] == "Runtime.ImportModuleError"
    assert "No module named 'no_such_module'" in answer["result"]["errorMessage"]
    log = "\n".join(client.log(name))
    assert re.search(
        r"INIT_REPORT Init Duration: [\d.]+ ms\tPhase: init\tStatus: error\t"
        r"Error Type: Runtime.ImportModuleError",
        log,
    )
    assert "Phase: invoke\tStatus: error\tError Type: Runtime.ImportModuleError" in log
    assert report_of(answer)["error"] == "Runtime.ImportModuleError"


@pytest.mark.parametrize(
    ("at_init", "kind"), [("raise", "RuntimeError"), ("exit", "Runtime.ExitError")]
)
def test_init_that_fails_fails_the_invocation(client, at_init, kind):
    name = client.create(variables={"AT_INIT": at_init})
    answer = client.invoke(name)
    assert answer["error"] == "Unhandled"
    assert answer["result"]["errorType"] == kind


def test_init_over_its_limit_is_tried_again_within_the_invocation(client, tmp_path):
    # The cloud of these tests allows 3 s, not Lambda's 10.
    variables = {"AT_INIT": "sleep", "INIT_S": "30"}
    name = client.create(variables=variables, Timeout=1)
    answer = client.invoke(name)
    assert answer["result"]["errorType"] == "Sandbox.Timedout"
    log = "\n".join(client.log(name))
    assert re.search(
        r"INIT_REPORT Init Duration: 30\d\d.\d\d ms\tPhase: init\tStatus: timeout", log
    )
    assert report_of(answer)["status"] == "timeout"
    assert int(report_of(answer)["billed"]) >= 4000
