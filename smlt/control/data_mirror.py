"""Data that lie in a bucket, copied into a folder here: from there they go as others do."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from smlt.control.source_files import all_files
from smlt.errors import ConfigError, NotFoundError
from smlt.io.object_store import ObjectStore
from smlt.io.stores import open_object_store
from smlt.io.together import together

_PIECE = 32 << 20
_COPIES = 4  # at a time


class DataMirror:
    """A folder that holds, after each ``refresh``, what the objects under a URL hold."""

    def __init__(
        self,
        url: str,
        run_dir: Path,
        opened: Callable[[str], ObjectStore] = open_object_store,
    ) -> None:
        """Keep the copy in the run directory, where the next job finds it."""
        self.url = url
        place = run_dir / "data" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self.folder = place / "files"
        self._index = place / "index.json"
        self._opened = opened

    async def refresh(self) -> Path:
        """Copy what is new or has changed, and drop what is gone; return the folder.

        Raises:
            ConfigError: there is no object under the URL.
            StoreError: the bucket cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        async with self._opened(self.url) as store:
            there = {info.key: [info.size, info.tag] async for info in store.list("")}
            there = {key: told for key, told in there.items() if not key.endswith("/")}
            known = self._known()
            limit = asyncio.Semaphore(_COPIES)

            async def copy(key: str) -> None:
                async with limit:
                    await self._copy(store, key)

            changed = [key for key, told in there.items() if known.get(key) != told]
            await together(map(copy, changed))
        if not there:
            raise ConfigError(f"there are no data under {self.url}")
        for path in list(all_files(self.folder)):
            if path.relative_to(self.folder).as_posix() not in there:
                path.unlink()
        self._index.write_text(json.dumps(there), encoding="utf-8")
        return self.folder

    async def _copy(self, store: ObjectStore, key: str) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self._index.with_name(f"{hashlib.sha256(key.encode()).hexdigest()}.part")
        with part.open("wb") as file:
            start = 0
            while True:
                try:
                    piece = await store.get_range(key, start, _PIECE)
                except NotFoundError:
                    return  # it was removed meanwhile: the next look tells
                file.write(piece)
                start += len(piece)
                if len(piece) < _PIECE:
                    break
        part.replace(path)

    def _path(self, key: str) -> Path:
        path = (self.folder / key).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ConfigError(f"{self.url} holds {key!r}, which is no name of a file")
        return path

    def _known(self) -> dict[str, list[object]]:
        try:
            known: dict[str, list[object]] = json.loads(self._index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: told for key, told in known.items() if self._path(key).is_file()}
