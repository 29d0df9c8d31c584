"""Packages that are too large for a function's own: fetched once per environment, and verified.

They lie in the object store as LZ4-compressed tars, one for each package, beside a list of them
whose hash the function's settings name. Several threads fetch ranges ahead, while one unpacks.
Nothing is imported before the hash of every byte has been compared.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import shutil
import sys
import tarfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.frame

from smlt.errors import StoreError
from smlt.io.keys import bundle_key, bundle_list_key
from smlt.io.object_store import ObjectStore
from smlt.messages.worker import Bundle

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_RANGE_BYTES = 8 << 20
_TAR_BYTES = 1 << 20
_AHEAD = 8
_LONGEST_LIST = 1 << 20


def ensure_packages(objects: ObjectStore, digest: str, tmp: Path) -> None:
    """Make the packages of a list importable. Blocks; does nothing where they are already.

    Args:
        objects: the store that holds them.
        digest: SHA-256 of the list.
        tmp: the function's scratch space, of which they take their unpacked size.

    Raises:
        StoreError: something is missing, or is not what was deployed.
    """
    folder = tmp / f"smlt-packages-{digest[:16]}"
    if not folder.is_dir():
        begin = time.monotonic()
        draft = folder.with_suffix(".part")
        shutil.rmtree(draft, ignore_errors=True)
        bundles = _read_list(objects, digest)
        waited_s = _unpack(objects, bundles, draft)
        draft.rename(folder)
        seconds = time.monotonic() - begin
        packed = sum(bundle.packed for bundle in bundles) / 1e6
        unpacked = sum(bundle.unpacked for bundle in bundles) / 1e6
        print(
            f"smlt: packages of {packed:.0f} MB fetched and unpacked to {unpacked:.0f} MB in "
            f"{seconds:.1f} s, of which {waited_s:.1f} s were spent waiting for the object store",
            flush=True,
        )
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def _read_list(objects: ObjectStore, digest: str) -> list[Bundle]:
    data = objects.read_range(bundle_list_key(digest), 0, _LONGEST_LIST)
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError("the list of packages is not the one that was deployed: deploy again")
    return [Bundle.from_dict(plain) for plain in json.loads(data)]


def _unpack(objects: ObjectStore, bundles: list[Bundle], folder: Path) -> float:
    """Unpack all bundles into a folder; return the seconds for which bytes were waited for."""
    folder.mkdir(parents=True)
    ranges = [
        (bundle_key(bundle.sha256), start, min(_RANGE_BYTES, bundle.packed - start))
        for bundle in bundles
        for start in range(0, bundle.packed, _RANGE_BYTES)
    ]
    with ThreadPoolExecutor(_AHEAD) as pool:
        arriving = _Arriving(objects, pool, ranges)
        try:
            for bundle in bundles:
                _unpack_one(bundle, arriving, folder)
        finally:
            arriving.cancel()
    return arriving.waited_s


def _unpack_one(bundle: Bundle, arriving: _Arriving, folder: Path) -> None:
    stream = _Stream(arriving, bundle.packed)
    try:
        buffered = io.BufferedReader(stream, _TAR_BYTES)
        with tarfile.open(fileobj=buffered, mode="r|", bufsize=_TAR_BYTES) as archive:
            archive.extractall(folder, filter="data")
        stream.drain()
    except (tarfile.TarError, RuntimeError, EOFError) as exc:
        raise _damaged(bundle) from exc
    if stream.sha256 != bundle.sha256:
        raise _damaged(bundle)


def _damaged(bundle: Bundle) -> StoreError:
    return StoreError(
        f"the package {bundle.name} in the object store is not the one that was deployed: remove "
        f"{bundle_key(bundle.sha256)} and deploy again"
    )


class _Arriving:
    """Ranges in order, some of them on their way ahead of the reader."""

    def __init__(
        self, objects: ObjectStore, pool: ThreadPoolExecutor, ranges: list[tuple[str, int, int]]
    ) -> None:
        self.waited_s = 0.0
        self._objects = objects
        self._pool = pool
        self._ranges = iter(ranges)
        self._on_the_way: deque[Future[bytes]] = deque()
        for _ in range(_AHEAD):
            self._ask()

    def next(self) -> bytes:
        begin = time.monotonic()
        data = self._on_the_way.popleft().result()
        self.waited_s += time.monotonic() - begin
        self._ask()
        return data

    def cancel(self) -> None:
        for future in self._on_the_way:
            future.cancel()

    def _ask(self) -> None:
        wanted = next(self._ranges, None)
        if wanted is not None:
            self._on_the_way.append(self._pool.submit(self._objects.read_range, *wanted))


class _Stream(io.RawIOBase):
    """What a bundle unpacks to; hashes what it was made of."""

    def __init__(self, arriving: _Arriving, packed: int) -> None:
        self._hash = hashlib.sha256()
        self._pieces = self._decompressed(arriving, packed)
        self._left = memoryview(b"")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer as far as what has been decompressed goes; 0 is the end."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        view = memoryview(buffer)
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def drain(self) -> None:
        """Read to the end of what was packed, which tarfile need not do."""
        for _ in self._pieces:
            pass

    def _decompressed(self, arriving: _Arriving, packed: int) -> Iterator[bytes]:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        while packed > 0:
            data = arriving.next()
            if not data:
                raise EOFError
            packed -= len(data)
            self._hash.update(data)
            while not decompressor.eof:
                piece = decompressor.decompress(data, max_length=_RANGE_BYTES)
                data = b""
                if piece:
                    yield piece
                if decompressor.needs_input:
                    break
