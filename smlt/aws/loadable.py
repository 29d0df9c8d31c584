"""Find out here, and not in a function, what of a package would not load there."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from smlt.aws.elf import Library, read_library
from smlt.aws.machine import SYSTEM_LIBRARIES, Machine
from smlt.aws.wheels import Wheel
from smlt.errors import ConfigError

COMPILED = (".so", ".pyd")


def check_loadable(
    machine: Machine, code: Mapping[str, Path], own: Mapping[str, Path], wheels: Sequence[Wheel]
) -> dict[str, str]:
    """Return the libraries of the system that Lambda has not, and what asks for each.

    Args:
        machine: where it is to load.
        code: the function's files by name.
        own: those of them that are the user's.
        wheels: the packages.

    Raises:
        ConfigError: something is compiled for another processor, or for a newer system.
    """
    libraries = _libraries(code, own, wheels)
    there = {name.rpartition("/")[2] for _, name in libraries}
    there |= {library.name for library in libraries.values()} | SYSTEM_LIBRARIES
    missing: dict[str, str] = {}
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
        for wanted in library.needed:
            if wanted not in there:
                missing.setdefault(wanted, f"{name} ({owner})")
    return missing


def _libraries(
    code: Mapping[str, Path], own: Mapping[str, Path], wheels: Sequence[Wheel]
) -> dict[tuple[str, str], Library]:
    """All that is compiled, by whose it is and its name."""
    libraries: dict[tuple[str, str], Library] = {}
    for name, path in code.items():
        if (library := _library(name, path.read_bytes)) is not None:
            libraries["your code" if name in own else "smlt", name] = library
    for wheel in wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for name, info in wheel.members.items():
                if (library := _library(name, partial(archive.read, info))) is not None:
                    libraries[wheel.name, name] = library
    return libraries


def _library(name: str, read: Callable[[], bytes]) -> Library | None:
    if not (name.endswith(COMPILED) or ".so." in name):
        return None
    return read_library(read())
