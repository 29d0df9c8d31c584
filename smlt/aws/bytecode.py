"""The compiled modules of a package, made by a Python of the functions' version, if one is here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from smlt.aws import compile_sources
from smlt.aws.wheels import Wheel
from smlt.errors import ConfigError

_COMPILE_S = 900.0
_ASK_S = 10.0


def interpreter(python: str) -> str | None:
    """Return a Python of a version, as in ``3.12``: this one, or one on PATH; None if none is."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == python:
        return sys.executable
    found = shutil.which(f"python{python}")
    if found is None:
        return None
    question = [found, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = subprocess.run(question, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found if done.stdout.strip() == python else None


def with_bytecode(wheels: Sequence[Wheel], program: str, python: str, cache: Path) -> list[Wheel]:
    """Return the wheels with their compiled modules; what was compiled before is not again."""
    folder = _folder(cache)
    made = [
        replace(wheel, compiled=folder / f"{wheel.sha256}-{len(wheel.members)}-{python}.zip")
        for wheel in wheels
    ]
    tasks = [
        {
            "out": str(wheel.compiled),
            "sources": {
                name: (str(wheel.path), info.filename)
                for name, info in wheel.members.items()
                if name.endswith(".py")
            },
        }
        for wheel in made
        if wheel.compiled is not None and not wheel.compiled.is_file()
    ]
    _compile(tasks, program)
    return made


def code_bytecode(files: Mapping[str, Path], program: str, python: str, cache: Path) -> Path:
    """Return the zip of the compiled modules of files, by their names in the package."""
    sources = {name: path for name, path in files.items() if name.endswith(".py")}
    digest = hashlib.sha256(python.encode())
    for name, path in sorted(sources.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    out = _folder(cache) / f"{digest.hexdigest()[:32]}.zip"
    if not out.is_file():
        plain = {name: ("", str(path)) for name, path in sources.items()}
        _compile([{"out": str(out), "sources": plain}], program)
    return out


def _folder(cache: Path) -> Path:
    folder = cache / "bytecode"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compile(tasks: Sequence[Mapping[str, object]], program: str) -> None:
    if not tasks:
        return
    try:
        done = subprocess.run(
            [program, "-I", "-S", str(compile_sources.__file__)],
            input=json.dumps(tasks),
            capture_output=True,
            text=True,
            timeout=_COMPILE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{program} did not compile the packages in {_COMPILE_S:g} s") from None
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigError(f"{program} could not compile the packages: {' '.join(last)}")
