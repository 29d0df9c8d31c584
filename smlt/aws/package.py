"""What is deployed: the user's code with smlt, and the packages that both need, for one machine.

Code goes into the function's zip, packages into a layer, so that a change of code uploads code
alone. What does not fit Lambda's 250 MB goes into bundles that a function fetches at its first
call (``bundles.py``). Everything is named by a digest of its content: the same input gives the same
names, and what is there already is not uploaded again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smlt.aws.core_build import core_files
from smlt.aws.elf import Library, read_library
from smlt.aws.machine import SYSTEM_LIBRARIES, Machine
from smlt.aws.wheels import WORKER_NEEDS, Wheel, fetch_wheels, plain_name
from smlt.config.aws import AwsConfig
from smlt.control.artifact_manager import Target, smlt_files, user_files
from smlt.errors import ConfigError

UNPACKED_LIMIT = 250 << 20
"""Bytes of a function's code and layers together."""
LAYER_FOLDER = "python/"
"""Below it, Lambda's Python finds what a layer brings."""
_REQUIREMENTS = "requirements.txt"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_COMPILED = (".so", ".pyd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A line of ``smlt package``: something that is deployed, how large it is, and why."""

    name: str
    place: str
    """code, layer or bundle."""
    why: str
    files: int
    packed: int | None
    """Bytes as uploaded; None for what is packed with others."""
    unpacked: int


@dataclass(frozen=True)
class Package:
    """All that a function of one machine runs."""

    machine: Machine
    user: dict[str, Path]
    smlt: dict[str, Path]
    wheels: list[Wheel]
    asked_by: dict[str, str]
    """Why a package is there that nobody else asks for."""

    @property
    def code(self) -> dict[str, Path]:
        """The files of the function's zip."""
        return {**self.smlt, **self.user}

    @cached_property
    def bundled(self) -> list[Wheel]:
        """The largest packages, if all of them are too large for Lambda."""
        left = sum(path.stat().st_size for path in self.code.values())
        left += sum(wheel.unpacked for wheel in self.wheels)
        chosen = []
        # smlt itself must start before bundles are fetched: its own needs stay in the layer.
        needed = _closure(WORKER_NEEDS, {wheel.name: wheel for wheel in self.wheels})
        for wheel in sorted(self.wheels, key=lambda wheel: -wheel.unpacked):
            if left <= UNPACKED_LIMIT:
                break
            if wheel.name not in needed:
                chosen.append(wheel)
                left -= wheel.unpacked
        if left > UNPACKED_LIMIT:
            raise ConfigError(_too_large(self.user, left))
        return chosen

    @property
    def layered(self) -> list[Wheel]:
        """The packages of the layer."""
        bundled = {wheel.name for wheel in self.bundled}
        return [wheel for wheel in self.wheels if wheel.name not in bundled]

    @cached_property
    def code_zip(self) -> bytes:
        """The function's zip. Stored plainly, so that no compressor's version changes its bytes."""
        buffer = io.BytesIO()
        members = ((name, file.read_bytes) for name, file in sorted(self.code.items()))
        _write_zip(buffer, members, zipfile.ZIP_STORED)
        return buffer.getvalue()

    @property
    def code_digest(self) -> str:
        return hashlib.sha256(self.code_zip).hexdigest()

    @cached_property
    def layer_digest(self) -> str:
        """Of the layer's packages, by what each wheel holds, and of what is left out of them."""
        return _digest(
            (f"{wheel.name}:{len(wheel.members)}", wheel.sha256) for wheel in self.layered
        )

    def write_layer(self, path: Path) -> None:
        """Write the layer's zip."""

        def members() -> Iterator[tuple[str, Callable[[], bytes]]]:
            for wheel in self.layered:
                with zipfile.ZipFile(wheel.path) as archive:
                    for name, info in sorted(wheel.members.items()):
                        yield f"{LAYER_FOLDER}{name}", lambda info=info: archive.read(info)  # type: ignore[misc]

        _write_zip(path, members(), zipfile.ZIP_DEFLATED)

    def parts(self) -> list[Part]:
        """Say what is in it, the largest first."""
        bundled = {wheel.name for wheel in self.bundled}
        parts = [
            _files_part("your code", self.user, "the folder of the task, less what is ignored"),
            _files_part("smlt", self.smlt, f"the worker, with its core for {self.machine}"),
        ]
        parts += [
            Part(
                name=f"{wheel.name} {wheel.version}",
                place="bundle" if wheel.name in bundled else "layer",
                why=self._why(wheel),
                files=len(wheel.members),
                packed=wheel.packed,
                unpacked=wheel.unpacked,
            )
            for wheel in self.wheels
        ]
        return sorted(parts, key=lambda part: -part.unpacked)

    def _why(self, wheel: Wheel) -> str:
        if wheel.name in self.asked_by:
            return self.asked_by[wheel.name]
        askers = [other.name for other in self.wheels if wheel.name in other.requires]
        if not askers:
            return "an extra of another package needs it"
        return f"{', '.join(askers)} need{'s' if len(askers) == 1 else ''} it"


def build_package(
    target: Target, skip: Iterable[Path], aws: AwsConfig, cache: Path, *, torch: bool
) -> Package:
    """Collect what the functions need, and check that it will load there.

    Args:
        target: the user's task.
        skip: folders that hold no code.
        aws: names the machine and the requirements.
        cache: folder that keeps wheels and compiled cores.
        torch: whether the task is made for PyTorch.

    Raises:
        ConfigError: packages cannot be had, or something compiled would not load there.
    """
    machine = Machine(aws.python, aws.architecture)
    requirements = aws.requirements
    if requirements is None and (target.folder / _REQUIREMENTS).is_file():
        requirements = target.folder / _REQUIREMENTS
    smlt = {name: path for name, path in smlt_files().items() if path.suffix not in _COMPILED}
    core = core_files(machine, cache, aws.core)
    smlt |= {f"smlt/_core/{name}": path for name, path in core.items()}
    asked_by = dict.fromkeys(WORKER_NEEDS, "smlt needs it")
    extra = []
    if torch:
        extra.append(f"torch=={importlib.metadata.version('torch')}")
        asked_by["torch"] = "the task is a TorchTask"
    if requirements is not None:
        text = requirements.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            asked_by.setdefault(plain_name(line), f"{requirements.name} line {number}")
            if plain_name(line) == "torch":
                extra = []
    wheels = fetch_wheels(requirements, extra, machine, cache)
    package = Package(machine, user_files(target, skip), smlt, wheels, asked_by)
    _check_compiled(package)
    return package


def _check_compiled(package: Package) -> None:
    """Find out here, and not in a function, that something compiled does not load there."""
    machine = package.machine
    libraries: dict[tuple[str, str], Library] = {}
    for name, path in package.code.items():
        if (library := _library(name, path.read_bytes)) is not None:
            libraries["your code" if name in package.user else "smlt", name] = library
    for wheel in package.wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for name, info in wheel.members.items():
                library = _library(name, lambda info=info: archive.read(info))  # type: ignore[misc]
                if library is not None:
                    libraries[wheel.name, name] = library
    there = {name.rpartition("/")[2] for _, name in libraries}
    there |= {library.name for library in libraries.values()} | SYSTEM_LIBRARIES
    for (owner, name), library in libraries.items():
        if library.machine != machine.elf_machine:
            raise ConfigError(
                f"{name} ({owner}) is compiled for another processor than {machine.architecture}"
            )
        if library.glibc > machine.glibc:
            needs, has = (".".join(map(str, version)) for version in (library.glibc, machine.glibc))
            raise ConfigError(
                f"{name} ({owner}) needs glibc {needs}, and {machine} on Lambda has {has}: compile "
                "it for an older system, as wheels called manylinux are, or choose a newer --python"
            )
        missing = [wanted for wanted in library.needed if wanted not in there]
        if missing:
            raise ConfigError(
                f"{name} ({owner}) needs the system library {missing[0]}, which Lambda does not "
                "have: put it beside your code, in lib/, or take a wheel that carries it"
            )


def _library(name: str, read: Callable[[], bytes]) -> Library | None:
    if not (name.endswith(_COMPILED) or ".so." in name):
        return None
    return read_library(read())


def _closure(names: Iterable[str], wheels: dict[str, Wheel]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and name in wheels:
            found.add(name)
            waiting += wheels[name].requires
    return found


def _files_part(name: str, files: dict[str, Path], why: str) -> Part:
    size = sum(path.stat().st_size for path in files.values())
    return Part(name=name, place="code", why=why, files=len(files), packed=None, unpacked=size)


def _too_large(user: dict[str, Path], size: int) -> str:
    largest = sorted(user.items(), key=lambda item: -item[1].stat().st_size)[:3]
    listed = ", ".join(f"{name} ({path.stat().st_size / 1e6:.0f} MB)" for name, path in largest)
    return (
        f"the code and what must be beside it take {size / 1e6:,.0f} MB, more than Lambda's "
        f"{UNPACKED_LIMIT >> 20} MB; your largest files are {listed}: keep data in data/, or leave "
        "files out with .smltignore"
    )


def _write_zip(
    target: Path | io.BytesIO, members: Iterable[tuple[str, Callable[[], bytes]]], method: int
) -> None:
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, read in members:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = method
            archive.writestr(info, read())


def _digest(items: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(items):
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()
