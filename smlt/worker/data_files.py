"""One file of the user's data: on this machine, or in a store from which ranges are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from smlt.errors import StoreError
from smlt.worker.local_cache import LocalCache

Fetch = Callable[[str, int, int], bytes]
"""``fetch(key, start, length)``: a blocking range read; called from several threads at once."""

_CHUNK_BYTES = 8 << 20


class DataFile(Protocol):
    """A file that can be read in parts and brought here whole."""

    @property
    def size(self) -> int: ...

    @property
    def local(self) -> Path | None:
        """Where the file lies and may be memory-mapped; None if it would have to be fetched."""
        ...

    def whole(self) -> Path:
        """Bring the file here and return where it is."""
        ...

    def open(self) -> BinaryIO:
        """Open the file for reading; only what is read is fetched."""
        ...


class LocalFile:
    """A file in a folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.local = path

    @property
    def size(self) -> int:
        return self.local.stat().st_size

    def whole(self) -> Path:
        return self.local

    def open(self) -> BinaryIO:
        return self.local.open("rb")


class StoredFile:
    """A content-addressed object in a store."""

    def __init__(
        self, name: str, sha256: str, size: int, key: str, fetch: Fetch, cache: LocalCache
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.size = size
        self.local = None
        self._key = key
        self._fetch = fetch
        self._cache = cache

    def whole(self) -> Path:
        """Fetch the file if it is not here yet.

        Raises:
            StoreError: the store failed, or the content is not what the manifest says.
        """
        name = f"files/{self.sha256}"
        return self._cache.find(name) or self._cache.add(name, self._verified())

    def open(self) -> BinaryIO:
        return io.BufferedReader(_RangeReader(self), buffer_size=64 << 10)

    def read(self, start: int, length: int) -> bytes:
        """Fetch a part of the file.

        Raises:
            StoreError: the store failed or returned fewer bytes.
        """
        data = self._fetch(self._key, start, length)
        if len(data) != length:
            raise StoreError(
                f"{self.name} is damaged in the store: bytes {start} to {start + length} were "
                f"asked for, {len(data)} came; upload the data again"
            )
        return data

    def part(self, start: int, length: int) -> NDArray[np.uint8] | None:
        """Return a part that was kept, if it is still there."""
        return self._cache.read(self._part_name(start, length))

    def keep(self, start: int, data: memoryview) -> None:
        """Keep a part that was read; it may have to make room for later ones."""
        self._cache.add(self._part_name(start, len(data)), [data])

    def _part_name(self, start: int, length: int) -> str:
        return f"parts/{self.sha256}/{start}-{length}"

    def _verified(self) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for start in range(0, self.size, _CHUNK_BYTES):
            chunk = self.read(start, min(_CHUNK_BYTES, self.size - start))
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != self.sha256:
            raise StoreError(f"{self.name} is damaged in the store: upload the data again")


class _RangeReader(io.RawIOBase):
    """A seekable stream over a stored file."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), max(0, self._file.size - self._position))
        if length:
            buffer[:length] = self._file.read(self._position, length)
            self._position += length
        return length
