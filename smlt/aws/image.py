"""A package as a container image: for what a zip cannot bring, such as a library of the system.

The Dockerfile is generated, and all that it copies is as in the zips: code above packages above
AWS's base image, so that a change of code pushes code alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from smlt.aws.package import Package
from smlt.control.artifact_manager import HANDLER

_BASE = "public.ecr.aws/lambda/python"
_PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}
_INSTALLERS = {"3.11": "yum"}
"""Amazon Linux 2's; all newer ones have dnf."""
_PACKAGES, _CODE = "packages", "code"
_TAG_LENGTH = 40


def dockerfile(package: Package) -> str:
    """Return what the image is built from.

    Libraries are asked for by their own names, which RPM packages say that they provide.
    """
    machine = package.machine
    lines = [f"FROM {_BASE}:{machine.python}"]
    wanted = [f"'{name}()(64bit)'" for name in sorted(package.missing)]
    wanted += sorted(package.system_packages)
    if wanted:
        program = _INSTALLERS.get(machine.python, "dnf")
        lines.append(f"RUN {program} install -y {' '.join(wanted)} && {program} clean all")
    lines += [f"COPY {folder}/ ${{LAMBDA_TASK_ROOT}}/" for folder in (_PACKAGES, _CODE)]
    lines.append(f'CMD ["{HANDLER}"]')
    return "\n".join(lines) + "\n"


def image_tag(package: Package) -> str:
    """Name the image by all that goes into it."""
    parts = (
        dockerfile(package),
        package.machine.architecture,
        package.code_digest,
        package.layer_digest,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_TAG_LENGTH]


def platform_of(package: Package) -> str:
    """Return the machine that the image is for, in Docker's words."""
    return _PLATFORMS[package.machine.architecture]


def write_context(package: Package, folder: Path) -> None:
    """Write the Dockerfile and all that it copies."""
    (folder / "Dockerfile").write_text(dockerfile(package), encoding="utf-8")
    for name, read in package.code_members():
        _write(folder / _CODE / name, read())
    (folder / _PACKAGES).mkdir()
    for wheel in package.layered:
        for name, _, read in wheel.contents():
            _write(folder / _PACKAGES / name, read())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
