"""Deployment packages: zips, unpacked once each into a directory named by their SHA-256."""

import base64
import binascii
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from smlt.embedded.api_error import ApiError, invalid
from smlt.embedded.limits import Limits

BAD_ZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."


@dataclass(frozen=True, slots=True)
class CodePackage:
    """An unpacked zip. sha256 is in base64, as the Lambda API shows it."""

    sha256: str
    size: int
    root: Path


def unpack(zip_base64: str, directory: Path, limits: Limits) -> CodePackage:
    """Check and unpack a zip; one that is there already is not unpacked again.

    Blocks for as long as unpacking takes: call it on a thread.

    Raises:
        ApiError: no zip, too large, or entries that would land outside the directory.
    """
    try:
        body = base64.b64decode(zip_base64, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise invalid(BAD_ZIP) from exc
    if len(body) > limits.zipped_bytes:
        raise ApiError(
            "RequestEntityTooLargeException",
            413,
            f"The zip has {len(body)} bytes; it must be smaller than {limits.zipped_bytes} bytes.",
        )
    digest = hashlib.sha256(body)
    root = directory / digest.hexdigest()
    if not root.exists():
        _unpack_into(root, body, limits)
    return CodePackage(base64.b64encode(digest.digest()).decode(), len(body), root)


def _unpack_into(root: Path, body: bytes, limits: Limits) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root.parent))
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            _check_entries(archive.infolist(), limits)
            archive.extractall(stage)
        _seal(stage)
        # Renaming is atomic: an environment never sees half a package.
        stage.rename(root)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as exc:
        raise invalid(BAD_ZIP) from exc
    except OSError:
        if not root.exists():
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _check_entries(entries: Sequence[zipfile.ZipInfo], limits: Limits) -> None:
    # zipfile reads no more than the size that an entry declares, so the sum is a true bound.
    if sum(entry.file_size for entry in entries) > limits.unzipped_bytes:
        raise invalid(f"Unzipped size must be smaller than {limits.unzipped_bytes} bytes")
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise invalid(f"{BAD_ZIP} The entry {entry.filename!r} lies outside the package.")


def _seal(root: Path) -> None:
    """Make files read-only; directories stay writable, so that compiled modules are kept."""
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for name in names:
            Path(folder, name).chmod(0o555 if os.access(Path(folder, name), os.X_OK) else 0o444)
