"""Packages that do not fit a function: one compressed tar each, and a list of them."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path

import lz4.frame

from smlt.aws.wheels import Wheel
from smlt.io.keys import bundle_key, bundle_list_key
from smlt.io.object_store import ObjectStore
from smlt.messages import Bundle

_BLOCK = lz4.frame.BLOCKSIZE_MAX4MB


def make_bundle(wheel: Wheel, cache: Path) -> tuple[Bundle, Path]:
    """Return a wheel's bundle and its file; one that was made before is not made again."""
    folder = cache / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{wheel.sha256}-{len(wheel.members)}.tar.lz4"
    if not path.is_file():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as draft:
            _write(wheel, Path(draft.name))
        Path(draft.name).rename(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    bundle = Bundle(
        name=wheel.name,
        version=wheel.version,
        sha256=digest,
        packed=path.stat().st_size,
        unpacked=wheel.unpacked,
    )
    return bundle, path


def bundle_list(bundles: list[Bundle]) -> bytes:
    """Return the list as functions read it; its SHA-256 names it."""
    return json.dumps([bundle.to_dict() for bundle in bundles], sort_keys=True).encode()


async def upload_bundles(objects: ObjectStore, bundles: list[tuple[Bundle, Path]]) -> None:
    """Store bundles, those that are there already left alone, and then their list."""
    for bundle, path in bundles:
        await objects.put_file(bundle_key(bundle.sha256), path)
    data = bundle_list([bundle for bundle, _ in bundles])
    key = bundle_list_key(hashlib.sha256(data).hexdigest())
    if await objects.head(key) is None:
        await objects.put(key, data)


def _write(wheel: Wheel, path: Path) -> None:
    with (
        zipfile.ZipFile(wheel.path) as archive,
        lz4.frame.open(path, "wb", block_size=_BLOCK, compression_level=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for name, member in sorted(wheel.members.items()):
            info = tarfile.TarInfo(name)
            info.size = member.file_size
            info.mode = 0o644
            with archive.open(member) as file:
                tar.addfile(info, file)
