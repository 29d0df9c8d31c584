"""Files fetched from a store, kept below one folder within a limit."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smlt.errors import StoreError, StoreFullError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class LocalCache:
    """Names to files; above ``limit_bytes`` the least recently used ones are removed.

    Names say what the content is (they carry its SHA-256), so that what an earlier invocation
    left in the folder is used again. Safe to use from several threads.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] | None = None
        self._mapped: dict[str, NDArray[np.uint8]] = {}

    def find(self, name: str) -> Path | None:
        """Return the file of this name, if it is there."""
        with self._lock:
            return self._use(name)

    def read(self, name: str) -> NDArray[np.uint8] | None:
        """Return the bytes of a file that is there, memory-mapped; they outlive its removal."""
        with self._lock:
            path = self._use(name)
            if path is None:
                return None
            if name not in self._mapped:
                self._mapped[name] = np.memmap(path, np.uint8, "r").view(np.ndarray)
            return self._mapped[name]

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> Path:
        """Write a file, whole or not at all, and make room for it.

        Raises:
            StoreFullError: the disk is full.
            StoreError: the folder cannot be written to.
        """
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = _write(path, chunks)
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                raise StoreFullError(
                    f"no room for data in {self.folder}: give the function more ephemeral "
                    "storage, or make the data smaller"
                ) from exc
            raise StoreError(f"data cannot be kept in {self.folder}: {exc}") from exc
        self._enter(name, size)
        return path

    def _enter(self, name: str, size: int) -> None:
        with self._lock:
            sizes = self._known()
            sizes[name] = size
            sizes.move_to_end(name)
            excess = sum(sizes.values()) - self.limit_bytes
            while excess > 0 and len(sizes) > 1:
                oldest, freed = sizes.popitem(last=False)
                self._mapped.pop(oldest, None)
                (self.folder / oldest).unlink(missing_ok=True)
                excess -= freed

    def _use(self, name: str) -> Path | None:
        sizes = self._known()
        if name not in sizes:
            return None
        path = self.folder / name
        if name not in self._mapped and not path.exists():
            # The folder is not ours alone: whoever tidied it up made us forget, too.
            del sizes[name]
            return None
        sizes.move_to_end(name)
        return path

    def _known(self) -> OrderedDict[str, int]:
        if self._sizes is None:
            found = sorted(
                (path.stat().st_mtime, str(path.relative_to(self.folder)), path.stat().st_size)
                for path in self.folder.rglob("*")
                if path.is_file() and not path.is_symlink() and path.suffix != ".part"
            )
            self._sizes = OrderedDict((name, size) for _, name, size in found)
        return self._sizes


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            size = file.tell()
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
    return size
