"""A local directory as the object store: one file per object, safe between processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import xxhash

from smlt.errors import (
    NotFoundError,
    PreconditionError,
    StoreError,
    StoreFullError,
)
from smlt.io.file_lock import file_lock
from smlt.io.object_store import (
    Bytes,
    Moved,
    ObjectInfo,
    ObjectStore,
    check_key,
    ignore,
    pieces,
)

OWN_DIRECTORY = ".smlt-store"
"""Holds temporary files and the lock; no key may begin with it."""
STALE_S = 3600.0
"""A temporary file this old belongs to a process that was killed."""

_FULL = {
    errno.ENOSPC: "it has no space left",
    errno.EDQUOT: "its quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached",
}
_REFUSED = {
    errno.EROFS: "it is mounted read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EEXIST: "a part of the key is an object itself",
}


class DirectoryStore(ObjectStore):
    """Keeps each object as the file of its key under ``root``, which the first write creates.

    A write goes to a temporary file, is flushed to the disk and then renamed, so that an object
    is whole or absent even after a power failure: what it acknowledges, it keeps, as a cloud's
    object store does. Only ``put_file`` is not flushed: data can be put again, and a
    content-addressed object of the wrong size is replaced. Etags are XXH3-128 of the content.
    """

    def __init__(self, root: str | os.PathLike[str], *, lock_wait_s: float = 15.0) -> None:
        self._root = Path(root).absolute()
        self._own = self._root / OWN_DIRECTORY
        self._lock_wait_s = lock_wait_s
        self._swept = False

    @property
    def url(self) -> str:
        return self._root.as_uri()

    async def close(self) -> None:
        """Do nothing: files are open only while they are read or written."""

    async def get(self, key: str) -> tuple[bytes, str]:
        return await asyncio.to_thread(self._get, key)

    def _get(self, key: str) -> tuple[bytes, str]:
        with self._translated("read", key):
            data = self._path(key).read_bytes()
        return data, _etag([memoryview(data)])

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        return await asyncio.to_thread(self.read_range, key, start, length)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Do what ``get_range`` does, blocking: for readers that have a thread of their own."""
        with self._translated("read", key), self._path(key).open("rb", buffering=0) as file:
            file.seek(start)
            chunks = []
            while length > 0 and (chunk := file.read(length)):
                chunks.append(chunk)
                length -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            with self._translated("look at", key):
                return ObjectInfo(key, path.stat().st_size) if path.is_file() else None
        except NotFoundError:
            return None

    async def put(
        self,
        key: str,
        data: Bytes | Sequence[Bytes],
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        return await asyncio.to_thread(self._put, key, pieces(data), if_absent, if_match)

    def _put(self, key: str, data: list[memoryview], if_absent: bool, if_match: str) -> str:
        path = self._path(key)
        with self._translated("write", key), self._temporary() as (fd, temporary):
            with open(fd, "wb", buffering=0, closefd=False) as file:
                for piece in data:
                    _write_all(file.fileno(), piece)
            os.fsync(fd)
            with self._directory_of(path):
                if if_absent:
                    _link(temporary, path, f"{key} in {self.url} exists already")
                else:
                    self._replace(temporary, path, if_match)
                _sync_directory(path.parent)
        return _etag(data)

    def _replace(self, temporary: Path, path: Path, if_match: str = "") -> None:
        with self._locked():
            if if_match and (not path.is_file() or _file_etag(path) != if_match):
                raise PreconditionError(f"{path} was changed by another writer")
            temporary.replace(path)

    @contextlib.contextmanager
    def _directory_of(self, path: Path) -> Iterator[None]:
        """Make the directory of an object and keep it: ``delete`` removes those left empty."""
        with self._locked("directories", shared=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield

    async def put_file(self, key: str, path: Path, moved: Moved = ignore) -> None:
        await asyncio.to_thread(self._put_file, key, path)
        moved((await asyncio.to_thread(path.stat)).st_size)

    def _put_file(self, key: str, source: Path) -> None:
        target = self._path(key)
        if not source.is_file():
            raise NotFoundError(f"cannot store {source}: there is no such file")
        with self._translated("write", key):
            if target.is_file() and target.stat().st_size == source.stat().st_size:
                return
            with self._temporary() as (fd, temporary):
                # Copied and never linked: the user may write to the file later.
                _copy(source, fd, temporary)
                with self._directory_of(target):
                    self._replace(temporary, target)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        directory, _, _ = prefix.rpartition("/")
        if directory:
            check_key(directory)
        pending = [f"{directory}/" if directory else ""]
        while pending:
            name = pending.pop()
            if not name.endswith("/") and name:
                info = await self.head(name)
                if info is not None:  # it may have been deleted since the directory was read
                    yield info
                continue
            children = await asyncio.to_thread(self._children, name)
            pending += [child for child in reversed(children) if child.startswith(prefix)]

    def _children(self, directory: str) -> Sequence[str]:
        """Objects and directories in one directory; directories end in ``/``, as in their keys.

        That slash in the sort key is what makes the order of a walk the order of the keys.
        """
        try:
            with self._translated("list", directory), os.scandir(self._root / directory) as entries:
                names = [
                    f"{directory}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries
                ]
        except NotFoundError:
            return []
        return sorted(name for name in names if name != f"{OWN_DIRECTORY}/")

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._delete, key)

    def _delete(self, key: str) -> None:
        path = self._path(key)
        if not path.is_file():
            return
        with self._translated("delete", key):
            with self._locked():
                path.unlink(missing_ok=True)
            with self._locked("directories"), contextlib.suppress(OSError):
                for parent in path.relative_to(self._root).parents[:-1]:
                    (self._root / parent).rmdir()

    def local_path(self, key: str) -> Path | None:
        path = self._path(key)
        return path if path.is_file() else None

    def _path(self, key: str) -> Path:
        check_key(key)
        if key.partition("/")[0] == OWN_DIRECTORY:
            raise StoreError(
                f"the key {key!r} cannot be stored: {OWN_DIRECTORY} is the store's own"
            )
        return self._root / key

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        """An open file beside the objects, gone at the end unless it was renamed."""
        self._own.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            self._sweep()
        path = self._own / f"tmp-{secrets.token_hex(12)}"
        # Not mkstemp: whoever may read the directory may read its objects.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield fd, path
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        self._swept = True
        horizon = time.time() - STALE_S
        for path in self._own.glob("tmp-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < horizon:
                    path.unlink()

    def _locked(self, name: str = "lock", *, shared: bool = False) -> AbstractContextManager[None]:
        self._own.mkdir(parents=True, exist_ok=True)
        return file_lock(self._own / name, wait_s=self._lock_wait_s, shared=shared)

    @contextlib.contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        where = f"cannot {action} {key or 'objects'} in {self._root}"
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
            if action == "write":
                reason = "a part of the key is an object itself, or the whole a directory"
                raise StoreError(f"{where}: {reason}") from exc
            raise NotFoundError(f"{where}: there is no such object") from exc
        except OSError as exc:
            code = exc.errno or 0
            if code in _FULL:
                raise StoreFullError(
                    f"{where}: {_FULL[code]}; free some, or choose another directory"
                ) from exc
            reason = _REFUSED.get(code, (exc.strerror or str(exc)).lower())
            raise StoreError(f"{where}: {reason}") from exc


def _link(temporary: Path, path: Path, refusal: str) -> None:
    """Give the file its name unless that exists: atomic on every file system, without a lock."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError as exc:
        raise PreconditionError(refusal) from exc


def _file_etag(path: Path) -> str:
    return _etag([memoryview(path.read_bytes())])


def _etag(data: Sequence[memoryview]) -> str:
    digest = xxhash.xxh3_128()
    for piece in data:
        digest.update(piece)
    return str(digest.hexdigest())


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _copy(source: Path, fd: int, target: Path) -> None:
    """Copy a file; file systems that can share blocks (Btrfs, XFS) do so."""
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError), source.open("rb") as file:
            while os.copy_file_range(file.fileno(), fd, 1 << 30):
                pass
            return
    shutil.copyfile(source, target)


def _sync_directory(path: Path) -> None:
    """Make a rename durable; some file systems have no way to, and need none."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
