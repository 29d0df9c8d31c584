"""A file's way to S3 in parts, several at once; one that was cut goes on where it was.

Only for content-addressed keys: an unfinished upload of the same key is one of the same bytes, and
a part counts as there if its MD5 is that of the file's part.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smlt.errors import NotFoundError, SmltError
from smlt.io.object_store import Moved
from smlt.io.s3_client import S3Client
from smlt.io.together import together

PART_BYTES = 16 << 20
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4


def part_length(size: int) -> int:
    """Return how long all parts but the last are."""
    return max(PART_BYTES, -(-size // MOST_PARTS))


class FileUpload:
    """One file under one name. What has arrived when it fails is left for the next attempt."""

    def __init__(self, client: S3Client, key: str, name: str, path: Path, size: int) -> None:
        """Name the object as users know it, and as S3 does."""
        self._client = client
        self._doing = f"write {key}"
        self._key: dict[str, Any] = {"Key": name}
        self._path = path
        self._size = size
        self._length = part_length(size)

    async def run(self, moved: Moved) -> None:
        """Upload all parts that are not there, and make them one object."""
        upload_id, there = await self._unfinished()
        if upload_id is None:
            begun = await self._client.call("create_multipart_upload", self._doing, **self._key)
            upload_id = begun["UploadId"]
        upload = {**self._key, "UploadId": upload_id}
        turns = asyncio.Semaphore(PARTS_AT_ONCE)

        async def send(number: int) -> dict[str, Any]:
            async with turns:
                data = await asyncio.to_thread(self._part, number)
                etag = there.get(number)
                if etag is None or etag.strip('"') != _md5(data):
                    doing = f"write part {number} of {self._key['Key']}"
                    answer = await self._client.call(
                        "upload_part", doing, **upload, PartNumber=number, Body=data
                    )
                    etag = answer["ETag"]
                moved(len(data))
                return {"PartNumber": number, "ETag": etag}

        count = -(-self._size // self._length)
        parts = await together(send(number) for number in range(1, count + 1))
        await self._complete(upload, {"Parts": parts})

    async def _unfinished(self) -> tuple[str | None, Mapping[int, str]]:
        """Return the newest unfinished upload and its parts' etags, as far as S3 tells."""
        with suppress(SmltError):  # it may not be allowed, or not known: then all is sent anew
            doing = f"look for what is there of {self._key['Key']}"
            prefix = self._key["Key"]
            found = await self._client.call("list_multipart_uploads", doing, Prefix=prefix)
            ours = [one for one in found.get("Uploads", ()) if one["Key"] == prefix]
            if ours:
                newest = max(ours, key=lambda one: str(one.get("Initiated", "")))
                return newest["UploadId"], await self._parts(doing, newest["UploadId"])
        return None, {}

    async def _parts(self, doing: str, upload_id: str) -> dict[int, str]:
        wanted: dict[str, Any] = {**self._key, "UploadId": upload_id}
        parts: dict[int, str] = {}
        while True:
            page = await self._client.call("list_parts", doing, **wanted)
            parts |= {part["PartNumber"]: part["ETag"] for part in page.get("Parts", ())}
            if not page.get("IsTruncated"):
                return parts
            wanted["PartNumberMarker"] = page["NextPartNumberMarker"]

    async def _complete(self, upload: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
        try:
            await self._client.call(
                "complete_multipart_upload", self._doing, **upload, MultipartUpload=parts
            )
        except NotFoundError:
            # Another client has completed it, or we have, and the answer was lost.
            there = await self._client.call("head_object", self._doing, **self._key)
            if there["ContentLength"] != self._size:
                raise

    def _part(self, number: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek((number - 1) * self._length)
            return file.read(self._length)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
