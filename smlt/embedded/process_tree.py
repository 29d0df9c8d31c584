"""A group of processes without control groups: what /proc tells about a leader's descendants."""

import contextlib
import os
import signal
from pathlib import Path

from smlt.embedded.resource_group import ResourceGroup, read_counters, signal_all


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
            status = read_counters(Path(f"/proc/{pid}/status"))
            anonymous += status.get("RssAnon:", 0) * 1024
            shared += status.get("RssShmem:", 0) * 1024
        return anonymous, shared

    def total_bytes(self) -> int:
        return sum(self.memory_bytes())

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

    def freeze(self, frozen: bool) -> None:
        signal_all(self.pids(), signal.SIGSTOP if frozen else signal.SIGCONT)

    def kill(self) -> None:
        signal_all(self.pids(), signal.SIGKILL)
        self._leader = 0

    def remove(self) -> bool:
        return True


class ProcessTrees:
    """No control groups: each group is what /proc tells about it."""

    limits_cpu = False
    directories: tuple[str, ...] = ()

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup:
        return ProcessTree()
