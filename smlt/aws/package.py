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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from smlt.aws.bytecode import code_bytecode, interpreter, with_bytecode
from smlt.aws.core_build import core_files
from smlt.aws.loadable import COMPILED, check_loadable
from smlt.aws.machine import Machine
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A line of ``smlt package``: something that is deployed, how large it is, and why."""

    name: str
    place: str
    """code, layer, bundle or image."""
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
    bytecode: Path | None = None
    """Zip of the code's modules, compiled; None where no Python of that version was found."""
    is_image: bool = False
    """It becomes a container image, which holds all of it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Libraries of the system that Lambda has not, and what needs each; for an image to install."""
    system_packages: tuple[str, ...] = ()
    """What else of the system an image is to have."""

    @property
    def code(self) -> dict[str, Path]:
        """The files of the function's zip."""
        return {**self.smlt, **self.user}

    @cached_property
    def bundled(self) -> list[Wheel]:
        """The largest packages, if all of them are too large for Lambda."""
        if self.is_image:
            return []
        left = sum(path.stat().st_size for path in self.code.values())
        left += sum(size for _, size, _ in self._compiled)
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
        _write_zip(buffer, self.code_members(), zipfile.ZIP_STORED)
        return buffer.getvalue()

    def code_members(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """The files beside the packages: the user's, smlt's, and their compiled modules."""
        for name, file in sorted(self.code.items()):
            yield name, file.read_bytes
        for name, _, data in self._compiled:
            yield name, partial(bytes, data)

    @property
    def code_digest(self) -> str:
        return hashlib.sha256(self.code_zip).hexdigest()

    @cached_property
    def layer_digest(self) -> str:
        """Of the layer's packages, by what each wheel holds, and of what is left out of them."""
        return _digest((wheel.name, wheel.identity) for wheel in self.layered)

    def write_layer(self, path: Path) -> None:
        """Write the layer's zip."""

        def members() -> Iterator[tuple[str, Callable[[], bytes]]]:
            for wheel in self.layered:
                for name, _, read in wheel.contents():
                    yield f"{LAYER_FOLDER}{name}", read

        _write_zip(path, members(), zipfile.ZIP_DEFLATED)

    def parts(self) -> list[Part]:
        """Say what is in it, the largest first."""
        bundled = {wheel.name for wheel in self.bundled}
        place = "image" if self.is_image else "layer"
        parts = [
            _files_part("your code", self.user, "the folder of the task, less what is ignored"),
            _files_part("smlt", self.smlt, f"the worker, with its core for {self.machine}"),
        ]
        compiled = self._compiled
        if compiled:
            why = "what is compiled here need not be at every cold start"
            size = sum(size for _, size, _ in compiled)
            parts.append(
                Part(
                    name="compiled modules",
                    place="code",
                    why=why,
                    files=len(compiled),
                    packed=None,
                    unpacked=size,
                )
            )
        parts += [
            Part(
                name=f"{wheel.name} {wheel.version}",
                place="bundle" if wheel.name in bundled else place,
                why=self._why(wheel),
                files=len(wheel.members),
                packed=wheel.packed,
                unpacked=wheel.unpacked,
            )
            for wheel in self.wheels
        ]
        return sorted(parts, key=lambda part: -part.unpacked)

    @cached_property
    def _compiled(self) -> list[tuple[str, int, bytes]]:
        if self.bytecode is None:
            return []
        with zipfile.ZipFile(self.bytecode) as archive:
            return [(i.filename, i.file_size, archive.read(i)) for i in archive.infolist()]

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
    smlt = {name: path for name, path in smlt_files().items() if path.suffix not in COMPILED}
    core = core_files(machine, cache, aws.core)
    smlt |= {f"smlt/_core/{name}": path for name, path in core.items()}
    requirements = _requirements(target, aws)
    asked_by, extra = _asked_by(requirements, torch=torch)
    wheels = fetch_wheels(requirements, extra, machine, cache)
    user = user_files(target, skip)
    bytecode, program = None, interpreter(machine.python)
    if program is not None:
        wheels = with_bytecode(wheels, program, machine.python, cache)
        bytecode = code_bytecode({**smlt, **user}, program, machine.python, cache)
    missing = check_loadable(machine, {**smlt, **user}, user, wheels)
    if missing and not aws.image:
        library, asker = next(iter(missing.items()))
        raise ConfigError(
            f"{asker} needs the system library {library}, which Lambda does not have: deploy a "
            "container image that has it, with --image, or put it beside your code, in lib/"
        )
    return Package(
        machine,
        user,
        smlt,
        wheels,
        asked_by,
        bytecode,
        is_image=aws.image,
        missing=missing,
        system_packages=tuple(aws.system_packages),
    )


def _requirements(target: Target, aws: AwsConfig) -> Path | None:
    """Return the file of requirements: the one that was named, else the one beside the task."""
    beside = target.folder / _REQUIREMENTS
    return aws.requirements or (beside if beside.is_file() else None)


def _asked_by(requirements: Path | None, *, torch: bool) -> tuple[dict[str, str], list[str]]:
    """Return who asks for each package, and what is to be fetched beside the requirements."""
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
    return asked_by, extra


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
