"""The cloud as a process: how it starts, announces itself, ends, and leaves nothing behind."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedded.conftest import Client, running_cloud, wait_until
from smlt.embedded import EmbeddedCloud
from smlt.errors import CloudError


def processes_mentioning(text):
    """Processes whose command line or environment contains a text; zombies have neither."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in command or text.encode() in environ:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode()
    found.pop(os.getpid(), None)
    return found


def control_groups(pids):
    """The clouds' control groups that processes are in: other tests have theirs meanwhile."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {part for line in lines for part in line.split("/") if part.startswith("smlt-")}


def left(groups):
    return [path for name in groups for path in Path("/sys/fs/cgroup").glob(f"**/{name}")]


def start(run_dir, *options, stdin=subprocess.PIPE):
    """The cloud as another program would start it, without our client."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smlt.embedded", "--run-dir", str(run_dir), *options],
        stdin=stdin,
        stdout=subprocess.PIPE,
    )
    ready = json.loads(process.stdout.readline())
    return process, ready


def finish(process):
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return process.wait(timeout=10)


def test_ready_line_and_cloud_json_agree(tmp_path):
    process, ready = start(tmp_path / "run")
    announced = json.loads((tmp_path / "run" / "cloud.json").read_text())
    assert announced == ready
    assert ready["endpoint"].startswith("http://127.0.0.1:")
    assert ready["pid"] == process.pid
    socket = Path(ready["parameters"].removeprefix("unix://"))
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert set(ready["isolation"]) >= {"mode", "memory", "cpu", "private_tmp", "hidden_shm"}
    process.terminate()
    assert finish(process) == 0
    assert not (tmp_path / "run" / "cloud.json").exists()
    assert not socket.exists()


def test_end_leaves_no_process_socket_or_control_group(tmp_path):
    run_dir = tmp_path / "run"
    with running_cloud(run_dir) as cloud:
        client = Client(cloud.endpoint)
        name = client.create()
        client.invoke(name, {"do": "child", "session": True})
        pids = processes_mentioning(str(run_dir))
        assert len(pids) >= 4
        groups = control_groups(pids)
    wait_until(lambda: not processes_mentioning(str(run_dir)), "all processes to end", 5)
    assert not left(groups)
    assert not (run_dir / "environments").exists()
    assert not (run_dir / "valkey.sock").exists()


@pytest.mark.parametrize("mode", ["auto", "watchdog"])
def test_kill_9_leaves_no_process_socket_or_control_group(tmp_path, mode):
    run_dir = tmp_path / "run"
    process, ready = start(run_dir, "--isolation", mode)
    client = Client(ready["endpoint"])
    name = client.create(memory=1769)
    client.invoke(name, {"do": "child", "session": True})
    client.api.invoke(
        FunctionName=name, InvocationType="Event", Payload=b'{"do": "sleep", "s": 60}'
    )
    wait_until(lambda: [e for e in client.environments() if e["state"] == "busy"], "busy")
    # Cloud, janitor, Valkey, a runtime, its grandchild in a session of its own.
    pids = processes_mentioning(str(run_dir))
    assert len(pids) >= 5
    groups = control_groups(pids)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    wait_until(lambda: not processes_mentioning(str(run_dir)), "all processes to end", 5)
    assert not left(groups)
    assert not (run_dir / "valkey.sock").exists()
    assert not (run_dir / "cloud.json").exists()


def test_next_cloud_in_the_run_directory_of_a_killed_one_starts(tmp_path):
    process, _ = start(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    with running_cloud(tmp_path / "run") as cloud:
        client = Client(cloud.endpoint)
        assert client.invoke(client.create())["error"] is None
        assert (tmp_path / "run" / "cloud.json").exists()


def test_end_of_stdin_ends_it_after_the_linger_time(tmp_path):
    process, _ = start(tmp_path / "run", "--linger", "0.7", "--no-parameter-store")
    begun = time.monotonic()
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    assert time.monotonic() - begun >= 0.7
    process.stdout.close()


def test_hold_keeps_it_alive_after_the_end_of_stdin(tmp_path):
    process, ready = start(tmp_path / "run", "--linger", "0.5", "--no-parameter-store")
    client = Client(ready["endpoint"])
    process.stdin.close()
    begun = time.monotonic()
    wait_until(lambda: client.admin("/_smlt/hold", "POST", {"seconds": 1.5})["ends"], "lingering")
    assert process.wait(timeout=10) == 0
    assert time.monotonic() - begun >= 1.5
    process.stdout.close()


def test_delete_on_the_admin_path_ends_it(tmp_path):
    process, ready = start(tmp_path / "run", "--no-parameter-store")
    Client(ready["endpoint"]).admin("/_smlt/cloud", "DELETE")
    assert finish(process) == 0


def test_interrupt_is_left_to_the_client(tmp_path):
    process, ready = start(tmp_path / "run", "--no-parameter-store")
    os.kill(process.pid, signal.SIGINT)
    client = Client(ready["endpoint"])
    assert client.invoke(client.create())["error"] is None
    process.terminate()
    assert finish(process) == 0


def test_second_cloud_in_a_run_directory_is_refused(tmp_path):
    refusal = r"another embedded cloud runs in .*choose another"
    with (
        running_cloud(tmp_path / "run", parameter_store=False),
        pytest.raises(CloudError, match=refusal),
        running_cloud(tmp_path / "run", parameter_store=False),
    ):
        pass


def test_run_directory_that_cannot_be_made_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "file").write_text("")
    refusal = r"did not start: .*Not a directory"
    with (
        pytest.raises(CloudError, match=refusal),
        running_cloud(tmp_path / "file" / "run"),
    ):
        pass


def test_client_cancelled_while_starting_leaves_nothing(tmp_path):
    run_dir = tmp_path / "run"

    async def start_and_cancel():
        async def enter():
            async with EmbeddedCloud(run_dir):
                await asyncio.sleep(60)

        task = asyncio.create_task(enter())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(start_and_cancel())
    wait_until(lambda: not processes_mentioning(str(run_dir)), "all processes to end", 5)


def test_environments_show_state_pid_and_memory(client):
    name = client.create(memory=885)
    answer = client.invoke(name, {"do": "allocate", "mb": 50})
    [idle] = client.environments(name)
    assert (idle["state"], idle["request_id"]) == ("idle", None)
    client.api.invoke(
        FunctionName=name, InvocationType="Event", Payload=b'{"do": "allocate", "mb": 50, "s": 3}'
    )
    busy = wait_until(
        lambda: [e for e in client.environments(name) if e["rss"] > 50 << 20], "50 MB in use"
    )[0]
    assert (busy["state"], busy["pid"]) == ("busy", idle["pid"])
    assert busy["request_id"] not in (None, answer["id"])
    assert "awslambdaric" in Path(f"/proc/{busy['pid']}/cmdline").read_text()
