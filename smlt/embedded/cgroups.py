"""Control groups: the kernel holds memory and CPU share, and can kill a group as a whole."""

import contextlib
import signal
from pathlib import Path

from smlt.embedded.resource_group import ResourceGroup, read_counters, signal_all

CPU_PERIOD_US = 20_000
CPU_QUOTA_FLOOR_US = 1000
"""The kernel accepts no smaller quota."""


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
        stat = read_counters(self._directory / "memory.stat")
        return stat.get("anon", 0), stat.get("shmem", 0)

    def total_bytes(self) -> int:
        return _number(self._directory / "memory.current")

    def oom_kills(self) -> int:
        return read_counters(self._directory / "memory.events").get("oom_kill", 0)

    def pids(self) -> list[int]:
        return _pids(self._directory)

    def freeze(self, frozen: bool) -> None:
        _write_if_there(self._directory / "cgroup.freeze", str(int(frozen)))

    def kill(self) -> None:
        _kill(self._directory)

    def remove(self) -> bool:
        return _remove(self._directory)


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
        stat = read_counters(self._memory / "memory.stat")
        return stat.get("total_rss", 0), stat.get("total_shmem", 0)

    def total_bytes(self) -> int:
        return _number(self._memory / "memory.usage_in_bytes")

    def oom_kills(self) -> int:
        return read_counters(self._memory / "memory.oom_control").get("oom_kill", 0)

    def pids(self) -> list[int]:
        return _pids(self._memory)

    def freeze(self, frozen: bool) -> None:
        # Version 1 would need a third hierarchy for this, which signals do as well.
        signal_all(self.pids(), signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        _kill(self._memory)

    def remove(self) -> bool:
        # All are tried: none may keep another from going.
        removed = [_remove(directory) for directory in self._directories]
        return all(removed)


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


def _kill(directory: Path, rounds: int = 100) -> None:
    """Kill what is in a control group, and what that forks meanwhile."""
    with contextlib.suppress(OSError):
        (directory / "cgroup.kill").write_text("1")
        return
    # Version 1 has no such file; a process that forks faster than we kill is met by the next round.
    for _ in range(rounds):
        alive = [pid for pid in _pids(directory) if _is_running(pid)]
        if not alive:
            return
        signal_all(alive, signal.SIGKILL)


def _remove(directory: Path) -> bool:
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


def _number(path: Path) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except OSError:
        return 0


def _write_if_there(path: Path, text: str) -> None:
    # Asked first: a control group answers an attempt to create a file with "permission denied".
    if path.exists():
        path.write_text(text)
