"""Pack code and data, content-addressed, into the object store."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import io
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import smlt
from smlt.control.source_files import all_files, code_files
from smlt.errors import CheckpointError, ConfigError, TaskError
from smlt.io.keys import blob_key, data_manifest_key, package_key
from smlt.io.object_store import ObjectStore
from smlt.io.weights import read_weights_file

HANDLER = "smlt.worker.handler.handler"
ZIP_LIMIT = 50 << 20
"""Bytes of a deployment package that Lambda takes directly."""

# What a function needs of smlt: the control plane, its emulator and its views stay at home.
_WORKER_PARTS = ("_core", "aggregation", "config", "io", "worker")
# Reproducible: the same content gives the same bytes, whenever and by whomever it is packed.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the user's task is, here and inside the package."""

    root: Path
    """The folder that the package's top level mirrors."""
    reference: str
    """``file.py:Class`` or ``module:Class``, relative to the root."""
    folder: Path
    """The folder of the task's file; its ``data/`` is the default data."""
    only: str | None = None
    """The one module or package under the root to pack; everything where it is None."""


@dataclass(frozen=True, slots=True)
class CodePackage:
    """A deployment package: a zip, and its SHA-256."""

    data: bytes
    code: str

    async def upload(self, objects: ObjectStore) -> None:
        """Store it under its hash; one that is there already is not sent again."""
        if await objects.head(package_key(self.code)) is None:
            await objects.put(package_key(self.code), self.data)


def locate(target: str, working_directory: Path) -> Target:
    """Find the code behind ``file.py:Class`` or ``module:Class``.

    Raises:
        TaskError: it is neither, or the file or module is not there.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name.isidentifier():
        raise TaskError(f"TARGET {target!r} is not of the form file.py:Class or module:Class")
    if place.endswith(".py"):
        path = (working_directory / place).resolve()
        if not path.is_file():
            raise TaskError(f"TARGET {target!r}: there is no file {path}")
        return Target(path.parent, f"{path.name}:{name}", path.parent)
    top = place.partition(".")[0]
    if (working_directory / top).is_dir() or (working_directory / f"{top}.py").is_file():
        folder = working_directory / Path(*place.split(".")).parent
        return Target(working_directory, target, folder, only=top)
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise TaskError(
            f"TARGET {target!r}: there is no module {top!r} in {working_directory}, and none is "
            "installed"
        )
    origin = Path(spec.origin)
    is_package = spec.submodule_search_locations is not None
    root = origin.parent.parent if is_package else origin.parent
    return Target(root, target, root / Path(*place.split(".")).parent, only=top)


def pack_code(target: Target, skip: Iterable[Path]) -> CodePackage:
    """Build the deployment package: the user's code and the worker's part of smlt.

    ``skip`` names folders that are not code: the data and the run directory.

    Raises:
        ConfigError: it is larger than Lambda takes; names the largest files.
    """
    files = {**smlt_files(), **user_files(target, skip)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as package:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            package.writestr(info, files[name].read_bytes())
            if buffer.tell() > ZIP_LIMIT:
                raise ConfigError(_too_large(target, files))
    data = buffer.getvalue()
    return CodePackage(data, hashlib.sha256(data).hexdigest())


async def upload_data(
    objects: ObjectStore, source: Path, *, before: Mapping[str, str] | None = None
) -> str:
    """Store every file of a folder (or one file) by content; return the manifest's key.

    The manifest says what is new beside ``before``, digests by name, where that is given.

    Raises:
        ConfigError: there is nothing to upload.
    """
    paths = {path.relative_to(source).as_posix(): path for path in all_files(source)}
    if not paths:
        raise ConfigError(f"the data folder {source} holds no file")
    files = {}
    for name, path in sorted(paths.items()):
        digest, size = await asyncio.to_thread(hash_file, path)
        files[name] = {"sha256": digest, "size": size}
        if await objects.head(blob_key(digest)) is None:
            await objects.put_file(blob_key(digest), path)
    listed: dict[str, Any] = {"files": files}
    if before is not None:
        listed["added"] = [n for n, entry in files.items() if before.get(n) != entry["sha256"]]
    manifest = json.dumps(listed, sort_keys=True).encode()
    key = data_manifest_key(hashlib.sha256(manifest).hexdigest())
    if await objects.head(key) is None:
        await objects.put(key, manifest)
    return key


def find_data(target: Target, given: Path | None) -> Path | None:
    """Return the folder of the data: the one given, else ``data/`` beside the task's file.

    Raises:
        ConfigError: there is none yet, but a ``prepare.py`` that makes it.
    """
    if given is not None:
        return given.resolve()
    beside = target.folder / "data"
    if beside.is_dir():
        return beside.resolve()
    prepare = target.folder / "prepare.py"
    if prepare.is_file():
        raise ConfigError(
            f"there is no data yet: {beside} does not exist; run `python {prepare}` once, or name "
            "a folder with --data"
        )
    return None


def check_weights(path: Path | None) -> None:
    """Refuse initial weights that cannot be read.

    Raises:
        ConfigError: the file is no safetensors file.
    """
    if path is None:
        return
    try:
        read_weights_file(path)
    except CheckpointError as error:
        raise ConfigError(f"--init-from: {error}") from error


async def upload_weights(objects: ObjectStore, path: Path | None) -> str | None:
    """Store initial weights by content; return their key."""
    if path is None:
        return None
    key = f"weights/{hash_file(path)[0]}.safetensors"
    await objects.put_file(key, path)
    return key


def smlt_files() -> dict[str, Path]:
    """Return what a function needs of smlt, by its name in the package."""
    home = Path(smlt.__file__).parent
    files = {f"smlt/{path.name}": path for path in home.glob("*.py") if path.name != "session.py"}
    for part in _WORKER_PARTS:
        for path in (home / part).rglob("*"):
            if path.suffix in (".py", ".so", ".pyd"):
                files[f"smlt/{path.relative_to(home).as_posix()}"] = path
    return files


def user_files(target: Target, skip: Iterable[Path]) -> dict[str, Path]:
    """Return the user's code by its name in the package; ``skip`` are folders that are none."""
    root, no_code = target.root, {path.resolve() for path in skip}
    if target.only is None:
        # The task's own file was named by the user, so no pattern leaves it out.
        paths = [root / target.reference.rpartition(":")[0], *code_files(root, root, no_code)]
    elif (root / target.only).is_dir():
        paths = [*code_files(root, root / target.only, no_code)]
    else:
        paths = [root / f"{target.only}.py"]
    return {path.relative_to(root).as_posix(): path for path in paths}


def _too_large(target: Target, files: dict[str, Path]) -> str:
    largest = sorted(files.items(), key=lambda item: -item[1].stat().st_size)[:3]
    listed = ", ".join(f"{name} ({path.stat().st_size / 1e6:.0f} MB)" for name, path in largest)
    return (
        f"the code below {target.root} does not fit Lambda's {ZIP_LIMIT >> 20} MB package; the "
        f"largest files are {listed}: keep the task in a folder of its own, and data in data/"
    )


def hash_file(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and its size."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def python_runtime() -> str:
    """Lambda's name for the Python that runs here; worker and client must agree."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"
