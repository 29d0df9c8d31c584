"""A bucket of S3, or of a service that speaks its protocol, as the object store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from smlt.errors import NotFoundError, PreconditionError, SmltError
from smlt.io.object_store import (
    Bytes,
    Moved,
    ObjectInfo,
    ObjectStore,
    check_key,
    ignore,
    pieces,
)
from smlt.io.s3_address import S3Address
from smlt.io.s3_client import S3Client
from smlt.io.s3_errors import BehindEndError
from smlt.io.s3_upload import PART_BYTES, PARTS_AT_ONCE, FileUpload, part_length
from smlt.io.together import together

WHOLE_BYTES = 2 * PART_BYTES
"""An object up to this size is written by one request."""
TIME_LIMIT_S = 30.0
_WRITER = "smlt-writer"

Read = Callable[[int, int], Awaitable[bytes]]
"""Returns the bytes from an offset up to another one."""


class S3ObjectStore(ObjectStore):
    """Keeps each object under ``prefix/key``. Belongs to one event loop; ``close`` it there.

    Etags are S3's own. A write carries a mark of its writer, by which one whose answer was lost is
    known again when its repetition is refused.
    """

    def __init__(self, address: S3Address, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._address = address
        self._client = S3Client(address, time_limit_s=time_limit_s)

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each kind were sent."""
        return self._client.requests

    async def get(self, key: str) -> tuple[bytes, str]:
        answer = await self._client.call("get_object", f"read {key}", Key=self._name(key))
        return answer["Body"], answer["ETag"]

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        wanted = self._range(key, start, length)
        try:
            answer = await self._client.call("get_object", f"read {key}", **wanted)
        except BehindEndError:
            return b""
        return bytes(answer["Body"])

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Do what ``get_range`` does, blocking: for readers that have a thread of their own."""
        wanted = self._range(key, start, length)
        try:
            answer = self._client.call_blocking("get_object", f"read {key}", **wanted)
        except BehindEndError:
            return b""
        return bytes(answer["Body"])

    async def head(self, key: str) -> ObjectInfo | None:
        try:
            answer = await self._client.call("head_object", f"look at {key}", Key=self._name(key))
        except NotFoundError:
            return None
        return ObjectInfo(key, answer["ContentLength"])

    async def put(
        self,
        key: str,
        data: Bytes | Sequence[Bytes],
        *,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
        parts = pieces(data)

        async def read(start: int, stop: int) -> bytes:
            return _between(parts, start, stop)

        return await self._write(key, sum(map(len, parts)), read, condition)

    async def put_file(self, key: str, path: Path, moved: Moved = ignore) -> None:
        name = self._name(key)
        size = await asyncio.to_thread(_size, path)
        there = await self.head(key)
        if there is not None and there.size == size:
            return
        if size > WHOLE_BYTES:
            await FileUpload(self._client, key, name, path, size).run(moved)
        else:
            await self.put(key, await asyncio.to_thread(path.read_bytes))
            moved(size)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        directory, _, _ = prefix.rpartition("/")
        if directory:
            check_key(directory)
        name = self._address.name(prefix)
        async for found, size, tag in self._client.names(name, f"list {prefix}*"):
            yield ObjectInfo(self._address.key(found), size, tag)

    async def delete(self, key: str) -> None:
        await self._client.call("delete_object", f"delete {key}", Key=self._name(key))

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    async def give_up_uploads(self) -> int:
        """Free what unfinished uploads of files have left, which is billed; return how many."""
        doing, count = "look for unfinished uploads", 0
        found = await self._client.call(
            "list_multipart_uploads", doing, Prefix=self._address.name("")
        )
        for one in found.get("Uploads", ()):
            upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
            with suppress(NotFoundError):
                await self._client.call("abort_multipart_upload", doing, **upload)
                count += 1
        return count

    async def close(self) -> None:
        await self._client.close()

    async def _write(self, key: str, size: int, read: Read, condition: dict[str, str]) -> str:
        writer = secrets.token_hex(12)
        named: dict[str, Any] = {"Key": self._name(key)}
        begun = named | {"Metadata": {_WRITER: writer}}
        if size <= WHOLE_BYTES:
            body = await read(0, size)
            return await self._finish("put_object", key, writer, **begun, **condition, Body=body)
        begin = await self._client.call("create_multipart_upload", f"write {key}", **begun)
        upload = named | {"UploadId": begin["UploadId"]}
        try:
            parts = await self._upload(key, upload, size, read)
            return await self._finish(
                "complete_multipart_upload",
                key,
                writer,
                **upload,
                **condition,
                MultipartUpload={"Parts": parts},
            )
        except BaseException:
            # Parts of an upload that never ends are billed for ever.
            with suppress(SmltError):
                await self._client.call("abort_multipart_upload", f"give up {key}", **upload)
            raise

    async def _upload(
        self, key: str, upload: dict[str, Any], size: int, read: Read
    ) -> Sequence[dict[str, Any]]:
        length = part_length(size)
        turns = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(number: int, start: int) -> dict[str, Any]:
            async with turns:
                body = await read(start, min(start + length, size))
                doing = f"write part {number} of {key}"
                answer = await self._client.call(
                    "upload_part", doing, **upload, PartNumber=number, Body=body
                )
                return {"PartNumber": number, "ETag": answer["ETag"]}

        starts = enumerate(range(0, size, length), 1)
        return await together(send(number, start) for number, start in starts)

    async def _finish(self, operation: str, key: str, writer: str, **parameters: Any) -> str:
        """Make the one request that a write stands or falls with; return the etag."""
        doing = f"write {key}"
        try:
            answer = await self._client.call(operation, doing, **parameters)
        except (PreconditionError, NotFoundError) as exc:
            # The writer that came first may be ourselves: an attempt whose answer was lost.
            with suppress(NotFoundError):
                there = await self._client.call("head_object", doing, Key=parameters["Key"])
                if there["Metadata"].get(_WRITER) == writer:
                    return str(there["ETag"])
            if "IfMatch" in parameters:  # S3 calls the object missing that was to be replaced
                raise PreconditionError(str(exc)) from exc
            raise
        return str(answer["ETag"])

    def _range(self, key: str, start: int, length: int) -> dict[str, Any]:
        # A range cannot be empty, so that of no bytes is one behind any end.
        stop = start + length - 1 if length > 0 else start
        return {"Key": self._name(key), "Range": f"bytes={start}-{stop}"}

    def _name(self, key: str) -> str:
        check_key(key)
        return self._address.name(key)


def _between(parts: Sequence[memoryview], start: int, stop: int) -> bytes:
    """Join what lies between two offsets of the pieces."""
    found, at = [], 0
    for part in parts:
        found.append(part[max(0, start - at) : max(0, stop - at)])
        at += len(part)
    return b"".join(found)


def _size(path: Path) -> int:
    if not path.is_file():
        raise NotFoundError(f"cannot store {path}: there is no such file")
    return path.stat().st_size
