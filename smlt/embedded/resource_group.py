"""The processes of one environment as a group: their memory, their CPU share, their end.

Three kinds stand behind one protocol: cgroup v2, cgroup v1, and a process tree read from /proc
for hosts that permit neither.
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Protocol

CPU_PERIOD_US = 20_000
CPU_QUOTA_FLOOR_US = 1000
"""The kernel accepts no smaller quota."""


class ResourceGroup(Protocol):
    """One environment's processes."""

    @property
    def procs_files(self) -> tuple[str, ...]:
        """Files into which a process writes its id to join; empty where joining needs none."""

    def lead_by(self, pid: int) -> None:
        """Tell which process was started first in the group."""

    def set_vcpus(self, vcpus: float | None) -> None:
        """Limit the CPU share; None lifts the limit."""

    def memory_bytes(self) -> tuple[int, int]:
        """Anonymous and shared (tmpfs included) memory in use, in bytes."""

    def oom_kills(self) -> int:
        """How many processes the kernel has killed at the group's hard limit."""

    def pids(self) -> list[int]: ...

    def kill(self) -> None:
        """Kill every process of the group."""

    def remove(self) -> bool:
        """Remove the empty group; False while a process is still leaving it."""


class GroupTree(Protocol):
    """Where the groups of one embedded cloud hang."""

    @property
    def directories(self) -> tuple[str, ...]:
        """Control group directories that hold every group; for the janitor."""

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup: ...


class Cgroup2:
    """A control group of the unified hierarchy."""

    def __init__(self, directory: Path, hard_limit_bytes: int) -> None:
        self._directory = directory
        directory.mkdir()
        (directory / "memory.max").write_text(str(hard_limit_bytes))
        _write_if_there(directory / "memory.swap.max", "0")

    @property
    def procs_files(self) -> tuple[str, ...]:
        return (str(self._directory / "cgroup.procs"),)

    def lead_by(self, pid: int) -> None:
        pass

    def set_vcpus(self, vcpus: float | None) -> None:
        quota = "max" if vcpus is None else str(_quota_us(vcpus))
        _write_if_there(self._directory / "cpu.max", f"{quota} {CPU_PERIOD_US}")

    def memory_bytes(self) -> tuple[int, int]:
        stat = _counters(self._directory / "memory.stat")
        return stat.get("anon", 0), stat.get("shmem", 0)

    def oom_kills(self) -> int:
        return _counters(self._directory / "memory.events").get("oom_kill", 0)

    def pids(self) -> list[int]:
        return _pids(self._directory)

    def kill(self) -> None:
        kill_cgroup(self._directory)

    def remove(self) -> bool:
        return remove_cgroup(self._directory)


class Cgroup1:
    """A pair of control groups of version 1: memory, and cpu where that controller is there."""

    def __init__(self, memory: Path, cpu: Path | None, hard_limit_bytes: int) -> None:
        self._memory = memory
        self._cpu = cpu
        for directory in self._directories:
            directory.mkdir()
        (memory / "memory.limit_in_bytes").write_text(str(hard_limit_bytes))
        _write_if_there(memory / "memory.memsw.limit_in_bytes", str(hard_limit_bytes))

    @property
    def _directories(self) -> tuple[Path, ...]:
        return (self._memory,) if self._cpu is None else (self._memory, self._cpu)

    @property
    def procs_files(self) -> tuple[str, ...]:
        return tuple(str(directory / "cgroup.procs") for directory in self._directories)

    def lead_by(self, pid: int) -> None:
        pass

    def set_vcpus(self, vcpus: float | None) -> None:
        if self._cpu is not None:
            _write_if_there(self._cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            quota = -1 if vcpus is None else _quota_us(vcpus)
            _write_if_there(self._cpu / "cpu.cfs_quota_us", str(quota))

    def memory_bytes(self) -> tuple[int, int]:
        stat = _counters(self._memory / "memory.stat")
        return stat.get("total_rss", 0), stat.get("total_shmem", 0)

    def oom_kills(self) -> int:
        return _counters(self._memory / "memory.oom_control").get("oom_kill", 0)

    def pids(self) -> list[int]:
        return _pids(self._memory)

    def kill(self) -> None:
        kill_cgroup(self._memory)

    def remove(self) -> bool:
        # All are tried: none may keep another from going.
        removed = [remove_cgroup(directory) for directory in self._directories]
        return all(removed)


class ProcessTree:
    """The descendants of one process, read from /proc: no limit of the kernel stands behind it."""

    def __init__(self) -> None:
        self._leader = 0

    procs_files: tuple[str, ...] = ()

    def lead_by(self, pid: int) -> None:
        self._leader = pid

    def set_vcpus(self, vcpus: float | None) -> None:
        pass

    def memory_bytes(self) -> tuple[int, int]:
        anonymous = shared = 0
        for pid in self.pids():
            status = _counters(Path(f"/proc/{pid}/status"))
            anonymous += status.get("RssAnon:", 0) * 1024
            shared += status.get("RssShmem:", 0) * 1024
        return anonymous, shared

    def oom_kills(self) -> int:
        return 0

    def pids(self) -> list[int]:
        """The leader and its descendants; one whose parent has died is not among them."""
        found: list[int] = []
        pending = [self._leader] if self._leader and Path(f"/proc/{self._leader}").exists() else []
        while pending:
            pid = pending.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in os.scandir(f"/proc/{pid}/task"):
                    pending += map(int, Path(task.path, "children").read_text().split())
        return found

    def kill(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._leader = 0

    def remove(self) -> bool:
        return True


class Cgroup2Tree:
    """Groups below one cgroup v2 directory that this program made."""

    def __init__(self, parent: Path, name: str) -> None:
        self._base = parent / name
        self._base.mkdir()
        enabled = (parent / "cgroup.subtree_control").read_text().split()
        wanted = [f"+{controller}" for controller in ("memory", "cpu") if controller in enabled]
        (self._base / "cgroup.subtree_control").write_text(" ".join(wanted))
        self.limits_cpu = "+cpu" in wanted

    @property
    def directories(self) -> tuple[str, ...]:
        return (str(self._base),)

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup:
        return Cgroup2(self._base / name, hard_limit_bytes)


class Cgroup1Tree:
    """Groups below a memory directory and, where there is one, a cpu directory."""

    def __init__(self, memory: Path, cpu: Path | None, name: str) -> None:
        self._memory = memory / name
        self._memory.mkdir()
        self._cpu: Path | None = None
        if cpu is not None:
            with contextlib.suppress(OSError):
                (cpu / name).mkdir()
                self._cpu = cpu / name
        self.limits_cpu = self._cpu is not None

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(str(base) for base in (self._memory, self._cpu) if base is not None)

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup:
        cpu = None if self._cpu is None else self._cpu / name
        return Cgroup1(self._memory / name, cpu, hard_limit_bytes)


class ProcessTrees:
    """No control groups: each group is what /proc tells about it."""

    limits_cpu = False
    directories: tuple[str, ...] = ()

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup:
        return ProcessTree()


def kill_cgroup(directory: Path, rounds: int = 100) -> None:
    """Kill what is in a control group, and what that forks meanwhile."""
    with contextlib.suppress(OSError):
        (directory / "cgroup.kill").write_text("1")
        return
    # Version 1 has no such file; a process that forks faster than we kill is met by the next round.
    for _ in range(rounds):
        alive = [pid for pid in _pids(directory) if _is_running(pid)]
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove_cgroup(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _quota_us(vcpus: float) -> int:
    return max(CPU_QUOTA_FLOOR_US, round(vcpus * CPU_PERIOD_US))


def _pids(directory: Path) -> list[int]:
    try:
        return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _is_running(pid: int) -> bool:
    """Whether a process still has code to run: not a zombie, and not one already dying."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][:1] not in ("Z", "X")


def _counters(path: Path) -> dict[str, int]:
    """Lines of "name number [unit]" as a dictionary; empty when the group is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(maxsplit=2)[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.write_text(text)
