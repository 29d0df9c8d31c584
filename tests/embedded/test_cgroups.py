"""Control groups, against the kernel where it permits them, and what is written into them."""

import os
import subprocess
import sys
import time

import pytest

from embedded.conftest import wait_until
from smlt.embedded import isolation
from smlt.embedded.cgroups import Cgroup2, Cgroup2Tree
from smlt.embedded.process_tree import ProcessTree
from smlt.errors import ConfigError

MB = 1 << 20
SKIPS = {
    "cgroup2": "control groups of version 2 hand no memory controller down to this user here",
    "cgroup1": "control groups of version 1 are not mounted here",
}


@pytest.fixture(params=["cgroup2", "cgroup1"])
def tree(request):
    try:
        made = isolation.detect(request.param, f"test-{os.getpid()}", []).tree
    except ConfigError:
        pytest.skip(SKIPS[request.param])
    yield made
    for directory in made.directories:
        os.rmdir(directory)


def run_in(group, code):
    """Start Python in a group: it joins before it runs the code."""
    join = "import os\n" + "".join(
        f"open({path!r}, 'w').write(str(os.getpid()))\n" for path in group.procs_files
    )
    return subprocess.Popen([sys.executable, "-c", join + code], stdout=subprocess.PIPE, text=True)


def finish(process, group):
    group.kill()
    process.wait(timeout=5)
    process.stdout.close()
    wait_until(group.remove, "the group to be empty")


@pytest.mark.isolation
def test_group_counts_the_memory_of_all_its_processes(tree):
    group = tree.create("a", 500 * MB)
    child = "x = b'x' * (50 << 20); print(1, flush=True); import time; time.sleep(60)"
    code = (
        "x = b'x' * (50 << 20)\n"
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    process = run_in(group, code)
    assert process.stdout.readline() == "1\n"
    anonymous, _ = group.memory_bytes()
    assert 100 * MB < anonymous < 150 * MB
    assert group.total_bytes() >= anonymous
    assert len(group.pids()) == 2
    finish(process, group)


@pytest.mark.isolation
def test_group_kills_at_the_hard_limit_and_counts_it(tree):
    group = tree.create("b", 60 * MB)
    process = run_in(group, "x = b'x' * (200 << 20)")
    assert process.wait(timeout=10) == -9
    assert group.oom_kills() == 1
    finish(process, group)


@pytest.mark.isolation
def test_group_limits_and_frees_the_cpu(tree):
    group = tree.create("c", 100 * MB)
    burn = (
        "import time\n"
        "while True:\n"
        "    begun, used = time.monotonic(), time.process_time()\n"
        "    while time.monotonic() - begun < 0.5: pass\n"
        "    print(time.process_time() - used, flush=True)\n"
    )
    group.set_vcpus(0.2)
    process = run_in(group, burn)
    shares = [float(process.stdout.readline()) / 0.5 for _ in range(2)]
    assert max(shares) < 0.3
    group.set_vcpus(None)
    deadline = time.monotonic() + 10
    while float(process.stdout.readline()) / 0.5 < 0.4:
        assert time.monotonic() < deadline, "the limit was not lifted"
    finish(process, group)


@pytest.mark.isolation
def test_kill_leaves_no_descendant_in_a_session_of_its_own(tree):
    group = tree.create("d", 100 * MB)
    code = (
        "import subprocess, time\n"
        "for _ in range(3): subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "print(1, flush=True); time.sleep(60)"
    )
    process = run_in(group, code)
    process.stdout.readline()
    pids = group.pids()
    assert len(pids) == 4
    finish(process, group)
    assert group.pids() == []


def test_version_2_files_hold_limit_quota_and_kill(tmp_path):
    # The kernel's files, played by plain ones: what is written is the contract of version 2.
    (tmp_path / "cgroup.subtree_control").write_text("cpuset cpu memory pids\n")
    tree = Cgroup2Tree(tmp_path, "smlt-x")
    base = tmp_path / "smlt-x"
    assert (base / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert tree.limits_cpu
    group = tree.create("env", 256 * MB)
    directory = base / "env"
    assert (directory / "memory.max").read_text() == str(256 * MB)
    (directory / "cpu.max").write_text("max 100000\n")
    group.set_vcpus(0.5)
    assert (directory / "cpu.max").read_text() == "10000 20000"
    group.set_vcpus(None)
    assert (directory / "cpu.max").read_text() == "max 20000"
    (directory / "memory.stat").write_text("anon 1048576\nfile 5\nshmem 4096\n")
    (directory / "memory.current").write_text("2097152\n")
    (directory / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    (directory / "cgroup.procs").write_text("12\n13\n")
    assert group.memory_bytes() == (1048576, 4096)
    assert group.total_bytes() == 2097152
    assert group.oom_kills() == 2
    assert group.pids() == [12, 13]
    group.kill()
    assert (directory / "cgroup.kill").read_text() == "1"


def test_group_that_is_gone_reads_as_empty(tmp_path):
    group = Cgroup2(tmp_path / "env", MB)
    (tmp_path / "env" / "memory.max").unlink()
    (tmp_path / "env").rmdir()
    assert group.memory_bytes() == (0, 0)
    assert group.total_bytes() == 0
    assert group.pids() == []
    assert group.remove()


def test_process_tree_finds_descendants_and_kills_them():
    code = (
        "import subprocess, sys\n"
        "x = b'x' * (30 << 20)\n"
        "subprocess.Popen(['sleep', '60']); print(1, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    tree = ProcessTree()
    tree.lead_by(process.pid)
    process.stdout.readline()
    assert len(tree.pids()) == 2
    assert 30 * MB < tree.memory_bytes()[0] < 80 * MB
    tree.kill()
    assert process.wait(timeout=5) == -9
    for pipe in (process.stdin, process.stdout):
        pipe.close()
