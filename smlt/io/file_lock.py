"""A lock between processes on one machine, with a time limit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from smlt.errors import StoreUnreachableError


@contextlib.contextmanager
def file_lock(path: Path, *, wait_s: float, shared: bool = False) -> Iterator[None]:
    """Hold the lock ``path``; the kernel releases it when the process dies. Blocks the thread.

    Raises:
        StoreUnreachableError: another process has held it for ``wait_s`` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(fd, path, wait_s, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, wait_s: float, mode: int) -> None:
    deadline = time.monotonic() + wait_s
    pause = 0.0005
    while True:
        try:
            return fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreUnreachableError(
                    f"another process has held the lock {path} for {wait_s:g} s;"
                    " see with fuser who it is"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
