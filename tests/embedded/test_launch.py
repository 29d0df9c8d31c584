"""The launcher: death with its parent, and a mount namespace with a /tmp and a /dev of its own."""

import json
import os
import subprocess
import sys

import pytest

from embedded.conftest import wait_until
from smlt.embedded.process import LAUNCHER


def launch(argv, **options):
    spec = {"argv": argv, "env": {}, "cwd": "/", "parent": os.getpid(), **options}
    return subprocess.run(
        [sys.executable, "-I", "-S", str(LAUNCHER)],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        timeout=20,
    )


def launch_or_skip(argv, **options):
    done = launch(argv, **options)
    if "unshare" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip(f"no {options['namespace']} namespace is permitted here")
    return done


def test_launch_becomes_what_is_asked_with_that_environment():
    done = launch(["/usr/bin/env"], env={"ONLY": "this"}, cwd="/usr")
    assert done.stdout == "ONLY=this\n"
    assert done.returncode == 0


def test_launch_limits_open_files():
    done = launch(["/bin/sh", "-c", "ulimit -n"], open_files=77)
    assert done.stdout == "77\n"


def test_launch_for_a_parent_that_is_gone_does_nothing():
    done = launch(["/bin/echo", "alive"], parent=1 << 22)
    assert done.stdout == ""
    assert "the process that asked for this one is gone" in done.stderr


def test_launched_process_dies_with_its_parent():
    spec = {"argv": ["/bin/sleep", "60"], "env": {}, "cwd": "/"}
    parent_code = (
        "import json, os, subprocess, sys\n"
        f"spec = {spec!r} | {{'parent': os.getpid()}}\n"
        f"p = subprocess.Popen([sys.executable, '-I', '-S', {str(LAUNCHER)!r}],"
        " stdin=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)\n"
        "p.stdin.write(json.dumps(spec)); p.stdin.close()\n"
        "print(p.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())

    def command():
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    wait_until(lambda: "sleep" in command(), "the child to be sleep")
    parent.kill()
    parent.wait(timeout=5)
    wait_until(lambda: "sleep" not in command(), "the child to die")
    for pipe in (parent.stdin, parent.stdout):
        pipe.close()


@pytest.mark.isolation
@pytest.mark.parametrize("namespace", ["mount", "user"])
def test_namespace_has_its_own_tmp_and_dev(namespace, tmp_path):
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "file").write_text("here")
    (tmp_path / "lone").write_text("alone")
    visible = [str(tmp_path / "seen"), str(tmp_path / "lone")]
    script = (
        f"cat {visible[0]}/file {visible[1]}; echo; ls {tmp_path}; ls -d /tmp/x* /dev/shm; "
        "echo x > /tmp/x; ls -d /tmp/x; id -u; echo > /dev/null; head -c 4 /dev/urandom | wc -c"
    )
    done = launch_or_skip(["/bin/sh", "-c", script], namespace=namespace, tmp_mb=1, visible=visible)
    lines = done.stdout.split()
    assert lines == ["herealone", "lone", "seen", "/tmp/x", str(os.getuid()), "4"]
    assert "/dev/shm" in done.stderr
    assert not os.path.exists("/tmp/x")


@pytest.mark.isolation
@pytest.mark.parametrize("namespace", ["mount", "user"])
def test_namespace_tmp_has_a_size(namespace):
    script = "head -c 3000000 /dev/zero > /tmp/big; wc -c < /tmp/big"
    done = launch_or_skip(["/bin/sh", "-c", script], namespace=namespace, tmp_mb=2, visible=[])
    assert "No space left on device" in done.stderr
    assert int(done.stdout) == 2 << 20
