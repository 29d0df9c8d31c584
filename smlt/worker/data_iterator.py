"""The user's data: arrays and files by name, of which a worker fetches only what it uses."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from smlt.errors import StoreFullError, TaskError
from smlt.io.keys import blob_key
from smlt.worker.array_files import Archive, open_npy
from smlt.worker.data_files import DataFile, Fetch, LocalFile, StoredFile
from smlt.worker.local_cache import LocalCache
from smlt.worker.range_array import RangeArray

# Half of Lambda's default /tmp: the user's code needs some too.
CACHE_BYTES = 256 << 20


class Data:
    """Names to the files of a data folder.

    ``data["train_x.npy"]`` and ``data["train.npz"]["x"]`` (or ``data["train.npz/x"]``) are
    read-only arrays: memory-mapped where the file is on this machine, else fetched by the rows
    that are used. ``data.path(name)`` brings a file, or a folder, here whole.
    """

    def __init__(
        self,
        files: Mapping[str, DataFile],
        tree: Path,
        cache: LocalCache | None,
        added: Iterable[str] | None = None,
    ) -> None:
        """Use ``Data.stored`` or ``Data.local``."""
        self.added = sorted(files if added is None else added)
        """Names of what came with the newest burst, in a job that watches; else all names."""
        self._files = dict(sorted(files.items()))
        self._tree = tree
        self._cache = cache

    @classmethod
    def local(cls, folder: Path | str) -> Self:
        """Return the data in a plain folder of this machine.

        Raises:
            TaskError: there is no such folder.
        """
        root = Path(folder).resolve()
        if not root.is_dir():
            raise TaskError(f"there is no data folder {folder}")
        paths = (Path(top) / name for top, _, names in os.walk(root) for name in names)
        return cls({p.relative_to(root).as_posix(): LocalFile(p) for p in paths}, root, None)

    @classmethod
    def stored(
        cls,
        manifest: Mapping[str, Mapping[str, Any]],
        *,
        fetch: Fetch,
        local_path: Callable[[str], Path | None],
        cache_dir: Path,
        cache_bytes: int = CACHE_BYTES,
        added: Iterable[str] | None = None,
    ) -> Self:
        """Return the data that a manifest lists, whose blobs are in an object store.

        Args:
            manifest: relative path to ``{"sha256": hex digest, "size": bytes}``.
            fetch: blocking ``fetch(key, start, length) -> bytes``, called from several threads;
                its errors are StoreErrors.
            local_path: the store's method of that name.
            cache_dir: where fetched parts are kept; may hold those of an earlier invocation.
            cache_bytes: limit of what is kept there.
            added: names of what is new; by default all.
        """
        cache = LocalCache(cache_dir, cache_bytes)
        files: dict[str, DataFile] = {}
        for name, entry in manifest.items():
            key = blob_key(entry["sha256"])
            path = local_path(key)
            files[name] = (
                StoredFile(name, entry["sha256"], entry["size"], key, fetch, cache)
                if path is None
                else LocalFile(path)
            )
        contents = "\n".join(f"{name}\0{manifest[name]['sha256']}" for name in sorted(manifest))
        digest = hashlib.sha256(contents.encode()).hexdigest()
        return cls(files, cache_dir / "trees" / digest[:16], cache, added)

    def __getitem__(self, name: str) -> NDArray[Any] | RangeArray | Archive:
        """Return the array of an ``.npy`` file, or the arrays of an ``.npz`` file by name.

        Raises:
            TaskError: there is no such file or array, or it is no array.
            StoreError: the store failed.
        """
        name = _normal(name)
        if name in self._files:
            return self._open(name)
        archive, _, member = name.rpartition("/")
        if archive.endswith(".npz") and archive in self._files:
            opened = self._open(archive)
            return opened[member]
        raise self._missing(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normal(name) in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self, pattern: str = "*") -> list[str]:
        """Return the names that match a pattern such as ``"*.png"``; its ``*`` crosses ``/``."""
        return [name for name in self._files if fnmatch.fnmatchcase(name, pattern)]

    def path(self, name: str) -> Path:
        """Bring a file, or a folder with all that is in it, here and return its path.

        What was brought first may make room for what comes later: ask for a path when the file is
        about to be read, in ``__getitem__`` rather than in ``__init__``.

        Raises:
            TaskError: there is no such file or folder.
            StoreError: the store failed, or there is not enough room here.
        """
        name = _normal(name)
        wanted = [name] if name in self._files else self.files(f"{name}/*" if name else "*")
        if not wanted:
            raise self._missing(name)
        if self._cache is not None:
            self._check_room(name, wanted, self._cache.limit_bytes)
            for each in wanted:
                _link(self._tree / each, self._files[each].whole())
        return self._tree / name

    def _open(self, name: str) -> NDArray[Any] | RangeArray | Archive:
        file = self._files[name]
        try:
            if name.endswith(".npz"):
                return Archive(name, file)
            if name.endswith(".npy"):
                with file.open() as stream:
                    return open_npy(file, stream)
        except (ValueError, EOFError, zipfile.BadZipFile) as exc:
            raise TaskError(f"{name} cannot be read as NumPy data: {exc}") from exc
        raise TaskError(f"{name} is neither .npy nor .npz: read it by way of data.path({name!r})")

    def _check_room(self, name: str, wanted: list[str], limit: int) -> None:
        fetched = sum(self._files[each].size for each in wanted if self._files[each].local is None)
        if len(wanted) > 1 and fetched > limit:
            raise StoreFullError(
                f"{name or 'the data'} is {fetched >> 20} MB in {len(wanted)} files, but only "
                f"{limit >> 20} MB may be kept here: ask for the path of one file at a time"
            )

    def _missing(self, name: str) -> TaskError:
        names = list(self._files)
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return TaskError(
            f"there is no {name!r} in the data, which holds {shown or 'nothing'}{hint}"
        )


def _normal(name: str) -> str:
    plain = os.path.normpath(name).replace(os.sep, "/").strip("/")
    return "" if plain == "." else plain


def _link(link: Path, target: Path) -> None:
    """Show a content-addressed file under its own name: libraries go by the ending."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)
