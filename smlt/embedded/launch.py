"""Become a contained process: read what to become from stdin, prepare, exec.

Run as a script by the interpreter with -I -S (15 ms), and imports only the standard library.
A process that has been forked off a threaded server must not run Python before exec, so the
preparation (cgroups, namespaces, mounts) happens here, after a first exec.

The specification is one JSON object:
    argv, env, cwd         what to exec
    parent                 process id of the starter; without it there is nothing to live for
    cgroup_procs           files into which to write our process id
    namespace              null, "mount", or "user" (a mount namespace inside a user namespace)
    tmp_mb, visible        size of a private /tmp, and the paths below /tmp that stay visible in it
    open_files             limit on file descriptors, or null
    oom_score_adj          so that the kernel, short of memory, takes a function and not the host
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MS_MOVE, MS_REC, MS_PRIVATE = 8192, 0x4000, 1 << 18
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
PR_SET_PDEATHSIG = 1
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    spec = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _die_with(spec["parent"])
    for path in spec.get("cgroup_procs", ()):
        with open(path, "w") as procs:
            procs.write(str(os.getpid()))
    with contextlib.suppress(OSError, KeyError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(spec["oom_score_adj"]))
    if spec.get("namespace"):
        _enter_namespace(spec["namespace"] == "user")
        # Entering a user namespace changes credentials, and that clears the death signal.
        _die_with(spec["parent"])
        _private_tmp(spec["tmp_mb"], spec["visible"])
        _bare_dev()
    if spec.get("open_files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["open_files"],) * 2)
    os.chdir(spec["cwd"])
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


def _die_with(parent: int) -> None:
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        sys.exit("the process that asked for this one is gone")


def _enter_namespace(user: bool) -> None:
    uid, gid = os.getuid(), os.getgid()
    _check(_libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)), "unshare")
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _mount(None, "/", flags=MS_REC | MS_PRIVATE)


def _private_tmp(size_mb: int, visible: list[str]) -> None:
    # Opened before /tmp is covered: a path below it can be bound back only through a descriptor.
    kept = [(path, os.open(path, os.O_PATH)) for path in sorted(visible) if os.path.exists(path)]
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size_mb}m,mode=1777")
    for path, descriptor in kept:
        if os.path.exists(path):
            continue  # below one that is bound already
        source = f"/proc/self/fd/{descriptor}"
        if os.path.isdir(source):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        _mount(source, path, flags=MS_BIND | MS_REC)
    for _, descriptor in kept:
        os.close(descriptor)


def _bare_dev() -> None:
    """Replace /dev by one without shm, as on Lambda (so multiprocessing locks fail here too)."""
    stage = "/tmp/.dev"
    os.mkdir(stage)
    _mount("tmpfs", stage, "tmpfs", MS_NOSUID, "size=64k,mode=755")
    for device in DEVICES:
        os.close(os.open(f"{stage}/{device}", os.O_CREAT | os.O_WRONLY))
        _mount(f"/dev/{device}", f"{stage}/{device}", flags=MS_BIND)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{stage}/{name}")
    os.symlink("/proc/self/fd", f"{stage}/fd")
    _mount(None, stage, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
    _mount(stage, "/dev", flags=MS_MOVE)
    os.rmdir(stage)


def _mount(
    source: str | None,
    target: str,
    kind: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    arguments: list[Any] = [text.encode() if text else None for text in (source, target, kind)]
    options = data.encode() if data else None
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
