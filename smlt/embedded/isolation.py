"""What this host permits for holding a function to its limits, found out by trying it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from smlt.embedded.cgroups import Cgroup1Tree, Cgroup2Tree
from smlt.embedded.limits import MB
from smlt.embedded.process import LAUNCHER, LaunchSpec
from smlt.embedded.process_tree import ProcessTrees
from smlt.embedded.resource_group import GroupTree, ResourceGroup
from smlt.errors import ConfigError

MODES = ("auto", "cgroup2", "cgroup1", "watchdog", "none")
PROBE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How environments are contained, and what could not be had.

    mode: cgroup2, cgroup1, watchdog (memory is measured, and over the limit killed) or none.
    namespace: "mount" (as root), "user" (in a user namespace) or None (no private /tmp, /dev/shm
    is there).
    """

    mode: str
    namespace: str | None
    tree: GroupTree
    notices: tuple[str, ...]

    @property
    def limits_memory(self) -> bool:
        return self.mode != "none"

    @property
    def limits_cpu(self) -> bool:
        return self.tree.limits_cpu

    def as_json(self) -> dict[str, object]:
        return {
            "mode": self.mode,
            "memory": self.limits_memory,
            "cpu": self.limits_cpu,
            "private_tmp": self.namespace is not None,
            "hidden_shm": self.namespace is not None,
            "namespace": self.namespace,
        }

    def create_group(self, name: str, memory_mb: int, ephemeral_mb: int) -> ResourceGroup:
        """A group whose hard limit leaves room for /tmp: tmpfs pages are charged to the writer.

        The function's own limit is held by measuring; the kernel's is the second line.
        """
        room_mb = ephemeral_mb if self.namespace is not None else 0
        return self.tree.create(name, (memory_mb + room_mb) * MB)


def detect(mode: str, cloud_id: str, visible: Sequence[str]) -> Isolation:
    """Try what the host permits, best first, and say in sentences what it does not.

    Raises:
        ConfigError: a mode was asked for by name and cannot be had.
    """
    if mode not in MODES:
        raise ConfigError(f"isolation {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode == "none":
        notice = "Isolation is off: no limit on memory, CPU or /tmp is enforced."
        return Isolation(mode=mode, namespace=None, tree=ProcessTrees(), notices=(notice,))
    notices: list[str] = []
    found, tree = _first_tree(mode, f"smlt-{cloud_id}", notices)
    namespace = _first_namespace(visible, notices)
    if not tree.limits_cpu:
        notices.append(
            "The CPU share of a function's memory size is not enforced: "
            "functions share this machine's CPUs as they come."
        )
    return Isolation(mode=found, namespace=namespace, tree=tree, notices=tuple(notices))


def _first_tree(mode: str, name: str, notices: list[str]) -> tuple[str, GroupTree]:
    wanted = MODES[1:3] if mode == "auto" else (mode,)
    reasons = []
    for kind in wanted:
        if kind == "watchdog":
            break
        try:
            return kind, _try_cgroups(kind, name)
        except OSError as exc:
            reasons.append(f"{kind}: {exc.strerror or exc}")
    if mode in ("cgroup1", "cgroup2"):
        raise ConfigError(
            f"isolation {mode} cannot be had on this host ({reasons[0]}); "
            "use --isolation auto, or delegate a control group to this user"
        )
    why = f" (no control groups: {'; '.join(reasons)})" if reasons else ""
    notices.append(
        "Memory limits are enforced by measuring every 100 ms instead of by the kernel"
        f"{why}, so a function may exceed its limit for a moment."
    )
    return "watchdog", ProcessTrees()


def _try_cgroups(kind: str, name: str) -> GroupTree:
    """Make the tree and let a process join it; leave nothing behind on failure."""
    tree = _cgroup2_tree(name) if kind == "cgroup2" else _cgroup1_tree(name)
    group = None
    try:
        group = tree.create("probe", 64 * MB)
        _run_launcher(group.procs_files, None, ())
    except OSError:
        _remove_tree(tree, group)
        raise
    group.remove()
    return tree


def _remove_tree(tree: GroupTree, group: ResourceGroup | None) -> None:
    if group is not None:
        group.remove()
    for directory in tree.directories:
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


def _cgroup2_tree(name: str) -> Cgroup2Tree:
    own, root = _own_cgroup(None)
    # The nearest directory that already hands the memory controller down: turning it on where
    # processes live is not allowed, and would be a change to what is not ours.
    for parent in (own, *own.parents):
        with contextlib.suppress(OSError):
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return Cgroup2Tree(parent, name)
        if parent == root:
            break
    raise OSError("no control group above this process hands memory limits down to this user")


def _cgroup1_tree(name: str) -> Cgroup1Tree:
    memory, _ = _own_cgroup("memory")
    try:
        cpu: Path | None = _own_cgroup("cpu")[0]
    except OSError:
        cpu = None
    return Cgroup1Tree(memory, cpu, name)


def _own_cgroup(controller: str | None) -> tuple[Path, Path]:
    """This process's directory and the mount point of a v1 controller, or of v2 for None."""
    path = next((path for names, path in _memberships() if names == controller), None)
    mount = next(_cgroup_mounts(controller), None)
    if path is None or mount is None:
        raise OSError(f"{controller or 'cgroup v2'} is not mounted")
    mount_point, mount_root = mount
    # In a container the mounted root may be a subdirectory of what /proc/self/cgroup counts from.
    relative = os.path.relpath(path, mount_root)
    directory = mount_point if relative.startswith("..") else Path(mount_point, relative)
    return directory.resolve(), mount_point.resolve()


def _memberships() -> Iterator[tuple[str | None, str]]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if not names:
            yield None, path
        for name in filter(None, names.split(",")):
            yield name, path


def _cgroup_mounts(controller: str | None) -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(maxsplit=2)
        is_wanted = kind == "cgroup2" if controller is None else kind == "cgroup"
        if is_wanted and (controller is None or controller in options.split(",")):
            yield Path(fields[4]), fields[3]


def _first_namespace(visible: Sequence[str], notices: list[str]) -> str | None:
    reason = "/tmp itself holds what functions need" if "/tmp" in visible else ""
    for kind in () if reason else ("mount", "user"):
        try:
            _run_launcher((), kind, visible)
        except OSError as exc:
            reason = exc.strerror or str(exc)
        else:
            return kind
    notices.append(
        f"Functions have no /tmp of their own and see /dev/shm ({reason}): each gets a directory "
        "named by TMPDIR, whose size is not limited."
    )
    return None


def _run_launcher(
    procs_files: Sequence[str], namespace: str | None, visible: Sequence[str]
) -> None:
    """Launch a process that does nothing, contained as asked.

    Raises:
        OSError: the host does not permit it; the text is the reason.
    """
    spec = LaunchSpec(
        argv=[sys.executable, "-I", "-S", "-c", ""],
        env={},
        cwd="/",
        cgroup_procs=procs_files,
        namespace=namespace,
        tmp_mb=1,
        visible=visible,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(LAUNCHER)],
            input=json.dumps(asdict(spec) | {"parent": os.getpid()}),
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise OSError(f"a trial process did not end within {PROBE_S:.0f} s") from exc
    if done.returncode != 0:
        raise OSError((done.stderr.strip().splitlines() or ["the trial process failed"])[-1])
