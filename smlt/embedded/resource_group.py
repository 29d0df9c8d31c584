"""The processes of one environment as a group: their memory, their CPU share, their end.

Three kinds stand behind these protocols: control groups of version 2 and of version 1, and a
process tree read from /proc for hosts that permit neither.
"""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


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

    def total_bytes(self) -> int:
        """An upper bound of the former, page cache included, that is cheap to read."""

    def oom_kills(self) -> int:
        """How many processes the kernel has killed at the group's hard limit."""

    def pids(self) -> list[int]: ...

    def freeze(self, frozen: bool) -> None:
        """Stop every process of the group where it is, or let them go on."""

    def kill(self) -> None:
        """Kill every process of the group."""

    def remove(self) -> bool:
        """Remove the empty group; False while a process is still leaving it."""


class GroupTree(Protocol):
    """Where the groups of one embedded cloud hang."""

    @property
    def limits_cpu(self) -> bool:
        """Whether `ResourceGroup.set_vcpus` has an effect."""

    @property
    def directories(self) -> tuple[str, ...]:
        """Control group directories that hold every group; for the janitor."""

    def create(self, name: str, hard_limit_bytes: int) -> ResourceGroup: ...


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes of which some may have ended, or belong to others by now."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def read_counters(path: Path) -> dict[str, int]:
    """Lines of "name number [unit]" as a dictionary; empty when the group is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(maxsplit=2)[:2] for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
