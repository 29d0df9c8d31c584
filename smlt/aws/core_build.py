"""smlt's compiled core for a machine that is not this one.

Lambda's system is older than most, and its processor may be another one, so what was compiled for
this machine does not load there. Zig's compiler carries the C libraries of all versions and
processors. The core is built against Python's stable interface: one build serves every version.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sysconfig import get_path

import numpy as np

import smlt
from smlt.aws.machine import Machine
from smlt.errors import ConfigError

SUFFIX = ".abi3.so"
_GLIBC = "2.17"
"""Older than Amazon Linux 2's, and what manylinux2014 asks for."""
_BUILD_S = 600.0
_HOME = Path(smlt.__file__).parent / "_core"
_MODULES = tuple(sorted(path.stem for path in _HOME.glob("*.pyx")))
_SOURCES = (".pyx", ".pxd", ".h")
# As in setup.py: the same code must give the same bits.
_DIRECTIVES = (
    "language_level=3,embedsignature=True,wraparound=False,cdivision=True,"
    "boundscheck=False,initializedcheck=False"
)
_FLAGS = (
    *("-shared", "-fPIC", "-s", "-O3", "-ffp-contract=off", "-fno-math-errno"),
    *("-Wno-unused-function", "-w"),
    "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION",
    "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION",
    # Python 3.11's stable interface has buffers, but macros only as functions.
    *("-DPy_LIMITED_API=0x030B0000", "-DCYTHON_LIMITED_API=1"),
    "-DPyBytes_AS_STRING=PyBytes_AsString",
)


def core_files(machine: Machine, cache: Path, given: Path | None = None) -> dict[str, Path]:
    """Return the compiled modules for a machine by their names in ``smlt/_core``.

    Args:
        machine: where they are to load.
        cache: folder that keeps what was built.
        given: a folder that holds them already.

    Raises:
        ConfigError: they are not there, or cannot be built; says what to install.
    """
    if given is not None:
        return _found(given)
    built = cache / "cores" / f"{_key(_HOME)}-{machine.processor}"
    if not built.is_dir():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / "made"
            made.mkdir()
            _build(_HOME, Path(folder), made, machine)
            try:
                made.rename(built)  # whole, or not at all
            except OSError:
                if not built.is_dir():  # else another process was faster
                    raise
    return _found(built)


def _found(folder: Path) -> dict[str, Path]:
    files = {}
    for module in _MODULES:
        found = sorted(folder.glob(f"{module}.*so"))
        if not found:
            raise ConfigError(f"{folder} holds no compiled {module}: give a folder of all")
        files[found[0].name] = found[0]
    return files


def _key(home: Path) -> str:
    digest = hashlib.sha256("\0".join((*_FLAGS, _DIRECTIVES, _GLIBC)).encode())
    for path in sorted(home.iterdir()):
        if path.suffix in _SOURCES:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(home: Path, folder: Path, made: Path, machine: Machine) -> None:
    for program in ("Cython", "ziglang"):
        if importlib.util.find_spec(program) is None:
            raise ConfigError(
                f"compiling smlt's core for {machine.architecture} needs {program}: "
                "pip install 'smlt[aws]'"
            )
    package = folder / "smlt" / "_core"
    package.mkdir(parents=True)
    for path in home.iterdir():
        if path.suffix in _SOURCES:
            shutil.copy(path, package)
    for init in (package, package.parent):
        (init / "__init__.py").touch()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = [pool.submit(_compile, name, folder, made, machine) for name in _MODULES]
        for build in builds:
            build.result()


def _compile(module: str, folder: Path, made: Path, machine: Machine) -> None:
    package = folder / "smlt" / "_core"
    _run([sys.executable, "-m", "cython", "-X", _DIRECTIVES, f"smlt/_core/{module}.pyx"], folder)
    includes = [f"-I{path}" for path in (np.get_include(), get_path("include"), package)]
    target = f"{machine.processor}-linux-gnu.{_GLIBC}"
    source, output = str(package / f"{module}.c"), str(made / f"{module}{SUFFIX}")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    _run([*zig, *_FLAGS, *includes, source, "-o", output], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[2]} did not end within {_BUILD_S:g} s") from None
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ConfigError(f"smlt's core could not be compiled ({command[2]}): {' | '.join(last)}")
