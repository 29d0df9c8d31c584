"""Clear up after the embedded cloud, however it ended.

A process of its own session that waits for its stdin to reach EOF, which is the cloud's end even
by SIGKILL. Then it kills what the cloud has left running and removes what it has left lying. It
inherits the run directory's lock, so that the next cloud there waits until all is clear.

Run as a script with the interpreter's -I; its one line of input on argv is a JSON object:
    cgroups      directories that held one control group per environment
    mark         text found in the process environment of everything started by the cloud
    remove       files and directories to remove
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

LIMIT_S = 10.0


def main() -> None:
    task = json.loads(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    bases = [Path(path) for path in task["cgroups"]]
    deadline = time.monotonic() + LIMIT_S
    while not _clear(bases, task["mark"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for path in map(Path, task["remove"]):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _clear(bases: list[Path], mark: str) -> bool:
    """Kill and remove once; True when nothing was left."""
    left = _marked(mark)
    for base in bases:
        for procs in base.glob("*/cgroup.procs"):
            with contextlib.suppress(OSError):
                left |= {int(pid) for pid in procs.read_text().split()}
    for pid in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for base in bases:
        for directory in [*base.glob("*/"), base]:
            with contextlib.suppress(OSError):
                directory.rmdir()
    return not left and not any(base.exists() for base in bases)


def _marked(mark: str) -> set[int]:
    """Processes that carry the mark in their environment; a zombie shows none."""
    needle = mark.encode()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


if __name__ == "__main__":
    main()
