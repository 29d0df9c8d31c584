"""How much memory a function uses, as Lambda would count it."""

import os

from smlt.embedded.limits import MB
from smlt.embedded.resource_group import ResourceGroup


class MemoryMeter:
    """Measures one process group against a function's memory size.

    A control group also counts what lies in its tmpfs, the private /tmp, which on Lambda is a disk;
    and no kernel limit can leave that out. So the kernel's limit has room for it, and the
    function's own limit is held by this meter: anonymous memory and shared memory without /tmp.
    """

    def __init__(self, group: ResourceGroup, limit_mb: int, *, has_tmpfs: bool) -> None:
        self._group = group
        self._limit_bytes = limit_mb * MB
        self._has_tmpfs = has_tmpfs
        self._highest_total = 0
        self.peak_bytes = 0

    def start_again(self, pid: int | None) -> None:
        """Forget the peak: another invocation begins."""
        self._highest_total = self.peak_bytes = 0
        self.measure(pid)

    def measure(self, pid: int | None) -> int:
        """Bytes in use now; pid is a process that sees the group's /tmp."""
        anonymous, shared = self._group.memory_bytes()
        used = anonymous + max(0, shared - self._tmp_bytes(pid)) if shared else anonymous
        self.peak_bytes = max(self.peak_bytes, used)
        return used

    def is_over(self, pid: int | None) -> bool:
        """Whether the limit is exceeded. Asks a cheap total first, and more when that has grown."""
        total = self._group.total_bytes()
        if total <= min(self._highest_total, self._limit_bytes):
            return False
        self._highest_total = max(self._highest_total, total)
        return self.measure(pid) > self._limit_bytes

    def _tmp_bytes(self, pid: int | None) -> int:
        if not self._has_tmpfs or pid is None:
            return 0
        try:
            room = os.statvfs(f"/proc/{pid}/root/tmp")
        except OSError:
            return 0
        return (room.f_blocks - room.f_bfree) * room.f_frsize
