"""Packages that do not fit a function: one compressed tar each, and a list of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

import lz4.frame

from smlt.aws.wheels import Wheel
from smlt.messages.worker import Bundle

_BLOCK = lz4.frame.BLOCKSIZE_MAX4MB


def make_bundle(wheel: Wheel, cache: Path) -> tuple[Bundle, Path]:
    """Return a wheel's bundle and its file; one that was made before is not made again."""
    folder = cache / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{wheel.identity}.tar.lz4"
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


def _write(wheel: Wheel, path: Path) -> None:
    with (
        lz4.frame.open(path, "wb", block_size=_BLOCK, compression_level=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for name, size, read in wheel.contents():
            info = tarfile.TarInfo(name)
            info.size = size
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(read()))
