"""A child process that dies with us: started through `launch.py`, watched by its pidfd."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
READ_BYTES = 65536
LINE_BYTES = 262_144
"""The longest line kept in one piece: CloudWatch's event size before it was raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to become; see `launch.py`."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    cgroup_procs: Sequence[str] = ()
    namespace: str | None = None
    tmp_mb: int = 0
    visible: Sequence[str] = ()
    open_files: int | None = None
    oom_score_adj: int = 0


class ChildProcess:
    """One child, its output line by line, and its end. Belongs to the running event loop.

    The child leads a session and process group of its own, and gets SIGKILL when the thread that
    created it ends, so create it on a thread that lives as long as the program.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        *,
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line = on_line
        self._on_exit = on_exit
        self._partial = b""
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._output = self._start_reading()
        self._send(spec)
        self._loop.add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        """Kill the process group; a child that has ended is left alone."""
        if not self.exited.done():
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def terminate(self) -> None:
        if not self.exited.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def drain(self) -> None:
        """Hand over the lines that are already in the pipe, without waiting for more."""
        while self._output >= 0 and self._read_some():
            pass

    def _send(self, spec: LaunchSpec) -> None:
        body = json.dumps(asdict(spec) | {"parent": os.getpid()}).encode()
        stdin = self._popen.stdin
        if stdin is None:
            raise RuntimeError("the child was started without a pipe for its specification")
        # A broken pipe is told by the child's output and exit, like any other failure of it.
        with contextlib.suppress(BrokenPipeError):
            # Smaller than a pipe's buffer (an environment is limited to 4 KB), so it never blocks.
            stdin.write(body)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()

    def _start_reading(self) -> int:
        stdout = self._popen.stdout
        if stdout is None:
            raise RuntimeError("the child was started without a pipe for its output")
        descriptor = os.dup(stdout.fileno())
        stdout.close()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read_some)
        return descriptor

    def _read_some(self) -> bool:
        try:
            block = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return False
        if not block:
            self._stop_reading()
            return False
        *lines, self._partial = (self._partial + block).split(b"\n")
        for line in lines:
            self._on_line(line.decode("utf-8", "replace"))
        if len(self._partial) > LINE_BYTES:
            self._flush_partial()
        return True

    def _flush_partial(self) -> None:
        if self._partial:
            self._on_line(self._partial.decode("utf-8", "replace"))
            self._partial = b""

    def _stop_reading(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1
        self._flush_partial()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # Not waited for yet, so the group's number is still ours; the rest ends with its leader.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._popen.wait()
        os.close(self._pidfd)
        # Grandchildren may hold the pipe open, so its end is not waited for.
        self.drain()
        self._stop_reading()
        self.exited.set_result(status)
        if self._on_exit is not None:
            self._on_exit(status)
