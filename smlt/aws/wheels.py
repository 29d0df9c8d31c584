"""The packages that a function needs, as wheels for its machine and not for this one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from smlt.aws.machine import Machine
from smlt.errors import ConfigError

# What the worker's part of smlt imports; the rest of smlt's requirements is the client's.
WORKER_NEEDS = ("aioboto3", "lz4", "msgpack", "numpy", "redis", "safetensors", "xxhash")
_PIP_S = 1800.0
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_FILE_OPTION = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]+(\S+)")
_EXTRA = re.compile(r"\bextra\s*==")
# Descriptions of AWS's services: boto brings all of them, 20 MB, of which a worker uses these.
_SERVICES = {"s3", "secretsmanager", "ssm", "sso", "sso-oidc", "sts"}


@dataclass(frozen=True)
class Wheel:
    """One package, as pip has fetched it."""

    path: Path
    compiled: Path | None = None
    """Zip of its modules, compiled."""

    @cached_property
    def _metadata(self) -> tuple[str, str, tuple[str, ...]]:
        with zipfile.ZipFile(self.path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            headers = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
        requires = headers.get_all("Requires-Dist") or []
        plain = tuple(plain_name(text) for text in requires if not _EXTRA.search(text))
        return plain_name(headers["Name"]), headers["Version"], plain

    @property
    def name(self) -> str:
        return self._metadata[0]

    @property
    def version(self) -> str:
        return self._metadata[1]

    @property
    def requires(self) -> tuple[str, ...]:
        """Names of the packages that it asks for, whatever the conditions."""
        return self._metadata[2]

    @property
    def packed(self) -> int:
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def members(self) -> dict[str, zipfile.ZipInfo]:
        """What a function imports of it, by its path below ``site-packages``."""
        with zipfile.ZipFile(self.path) as archive:
            named = ((_installed_name(info.filename), info) for info in archive.infolist())
            return {name: info for name, info in named if name is not None and _is_wanted(name)}

    @cached_property
    def _bytecode(self) -> list[zipfile.ZipInfo]:
        if self.compiled is None:
            return []
        with zipfile.ZipFile(self.compiled) as archive:
            return archive.infolist()

    @property
    def unpacked(self) -> int:
        """Bytes of all that is deployed of it."""
        files = [*self.members.values(), *self._bytecode]
        return sum(info.file_size for info in files)

    @property
    def identity(self) -> str:
        """Names what is deployed of it; the same input gives the same."""
        form = "compiled" if self.compiled is not None else "source"
        return f"{self.sha256}-{len(self.members)}-{len(self._bytecode)}-{form}"

    def contents(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """What is deployed of it: each file's path below ``site-packages``, size and bytes."""
        with zipfile.ZipFile(self.path) as archive:
            for name, info in sorted(self.members.items()):
                yield name, info.file_size, partial(archive.read, info)
        if self.compiled is not None:
            with zipfile.ZipFile(self.compiled) as archive:
                for info in self._bytecode:
                    yield info.filename, info.file_size, partial(archive.read, info)


def fetch_wheels(
    requirements: Path | None, extra: list[str], machine: Machine, cache: Path
) -> list[Wheel]:
    """Return what smlt's worker and the user's requirements need, with all that these need.

    smlt's own needs are pinned to what is installed here, so that client and worker agree, unless
    the user's file names them. What was fetched for the same input before is not fetched again.

    Args:
        requirements: the user's file, with hashes or without, or None.
        extra: requirements beside the file's.
        machine: what the wheels are for.
        cache: folder that keeps them.

    Raises:
        ConfigError: pip cannot find them; its own last words are in it.
    """
    lines = [] if requirements is None else list(_lines(requirements))
    named = {plain_name(line) for line in lines if _NAME.match(line)}
    pins = _pins(named)
    wanted = [*(f"{name}{_bound(name) if name in named else ''}" for name in WORKER_NEEDS), *extra]
    key = _key([str(machine), *pins, *wanted, *_contents(requirements, lines)])
    kept = cache / "wheels" / key
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            target = Path(folder) / "made"
            target.mkdir()
            _download(requirements, lines, wanted, pins, machine, Path(folder), target)
            try:
                target.rename(kept)
            except OSError:
                if not kept.is_dir():
                    raise
    return sorted((Wheel(path) for path in kept.glob("*.whl")), key=lambda wheel: wheel.name)


def plain_name(requirement: str) -> str:
    """Return the package that a requirement names, in the one spelling that all share."""
    match = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", match[1] if match else requirement).lower()


def _download(
    requirements: Path | None,
    lines: list[str],
    wanted: list[str],
    pins: list[str],
    machine: Machine,
    folder: Path,
    target: Path,
) -> None:
    own, constraints = folder / "wanted.txt", folder / "constraints.txt"
    own.write_text("\n".join(wanted))
    constraints.write_text("\n".join(pins))
    theirs = [] if requirements is None else ["-r", str(requirements.resolve())]
    place = folder if requirements is None else requirements.resolve().parent
    if any("--hash" in line for line in lines):
        # pip wants hashes of all or of none: the user's file goes by itself, and binds the rest.
        _pip([*theirs, "--require-hashes"], machine, place, target)
        got = [Wheel(path) for path in target.glob("*.whl")]
        names = {wheel.name for wheel in got}
        bound = [f"{wheel.name}=={wheel.version}" for wheel in got]
        free = [pin for pin in pins if plain_name(pin) not in names]
        constraints.write_text("\n".join(free + bound))
        theirs = ["--find-links", str(target)]
    _pip([*theirs, "-r", str(own), "-c", str(constraints)], machine, place, target)


def _pip(arguments: list[str], machine: Machine, place: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", machine.python, "--dest", str(target)]
    command += [word for tag in machine.wheel_tags for word in ("--platform", tag)]
    try:
        done = subprocess.run(
            [*command, *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=_PIP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"pip did not fetch the packages within {_PIP_S / 60:g} min") from None
    if done.returncode != 0:
        said = f"{done.stdout}\n{done.stderr}"
        words = re.findall(r"^ERROR: (?!ResolutionImpossible)(.+)$", said, re.MULTILINE)
        conflict = re.search(r"^The conflict is caused by:\n((?: +.+\n)+)", said, re.MULTILINE)
        if conflict is not None:
            words.append("; ".join(line.strip() for line in conflict[1].splitlines()))
        raise ConfigError(
            f"the packages for {machine} cannot be had as wheels: "
            f"{' '.join(words or said.splitlines()[-3:])} (pip looks where its configuration and "
            "the requirements file say)"
        )


def _lines(file: Path) -> Iterator[str]:
    """The lines of a requirements file and of those that it includes, continued ones joined."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file} cannot be read: {exc}") from exc
    for line in text.replace("\\\n", " ").splitlines():
        plain = re.sub(r"(^|\s)#.*$", "", line).strip()
        included = _FILE_OPTION.match(plain)
        if included is not None:
            yield from _lines(file.parent / included[1])
        elif plain:
            yield plain


def _contents(requirements: Path | None, lines: list[str]) -> Iterator[str]:
    """The lines, and for each file that they name what is in it."""
    for line in lines:
        yield line
        if requirements is None:
            continue
        for word in re.split(r"[\s=@]+", line.replace("file://", "")):
            path = requirements.parent / word
            files = sorted(path.glob("*.whl")) if path.is_dir() else [path]
            for file in files:
                if file.suffix == ".whl" and file.is_file():
                    yield Wheel(file).sha256


def _pins(named: set[str]) -> list[str]:
    """Pin all that the worker's needs lead to, as it is installed, but for what the user names."""
    found: dict[str, str] = {}
    waiting = list(WORKER_NEEDS)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # wanted by another system or version of Python
        found[name] = distribution.version
        requires = distribution.requires or []
        waiting += [plain_name(text) for text in requires if not _EXTRA.search(text)]
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in named]


def _bound(name: str) -> str:
    """What smlt itself asks of a package."""
    for text in importlib.metadata.requires("smlt") or []:
        if plain_name(text) == name and not _EXTRA.search(text):
            match = _NAME.match(text)
            return text[match.end() :] if match else ""
    return ""


def _key(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _installed_name(member: str) -> str | None:
    """Where pip would put a member of a wheel; None for what is no code."""
    parts = PurePosixPath(member).parts
    if member.endswith("/") or not parts or ".." in parts or member.startswith("/"):
        return None
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
            return None
        return "/".join(parts[2:])
    return member


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if "tests" in parts[:-1] or "__pycache__" in parts or name.endswith((".pyi", ".pyx", ".pxd")):
        return False
    if parts[:2] == ("botocore", "data") and len(parts) > 3:
        return parts[2] in _SERVICES
    return parts[0] != "boto3" or "examples" not in parts
