"""Objects that live for a time, in a bucket that lets nothing expire by itself.

What is over by S3's clock is treated as if it were not there, until a sweep or the bucket's own
rules remove it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from smlt.errors import NotFoundError, StoreError
from smlt.io.link_rate import LinkRate
from smlt.io.parameter_store import MAX_FRAME_BYTES
from smlt.io.s3_client import S3Client, date_of

DELETE_AT_ONCE = 1000
GETS_AT_ONCE = 16
_TTL = "smlt-ttl-ms"
_CLOCK_STEP_S = 1.0
"""What S3 tells of time is in whole seconds."""


class ExpiringObjects:
    """The objects of a parameter store, by their names in the bucket. Belongs to one event loop."""

    def __init__(self, client: S3Client, link: LinkRate | None) -> None:
        self._client = client
        self._link = link
        self._gets = asyncio.Semaphore(GETS_AT_ONCE)

    @property
    def shown(self) -> str:
        """The bucket as messages show it."""
        return self._client.address.shown

    def now(self) -> float:
        """Return the time by S3's clock, in seconds since 1970."""
        return self._client.now()

    def name(self, key: str) -> str:
        """Return what the bucket calls the object of a key, without a slash of the key's own."""
        return self._client.address.name(quote(key, safe=":"))

    async def write(
        self, name: str, doing: str, body: bytes, ttl_s: float, **condition: Any
    ) -> None:
        """Write an object that lives for so long.

        Raises:
            PreconditionError: the condition (``IfNoneMatch``, ``IfMatch``) does not hold.
        """
        if self._link is not None:
            await self._link.up.carry(len(body))
        life = {_TTL: f"{round(ttl_s * 1000)}"}
        await self._client.call(
            "put_object", doing, Key=name, Body=body, Metadata=life, **condition
        )

    async def read(
        self,
        name: str,
        doing: str,
        *,
        into: memoryview | None = None,
        max_bytes: int = MAX_FRAME_BYTES,
        expired: bool = False,
    ) -> dict[str, Any] | None:
        """Return S3's answer with the ``Body``, or None where there is nothing, or it is over.

        With ``expired`` it may be over.
        """
        async with self._gets:
            try:
                answer = await self._client.call(
                    "get_object", doing, into=into, max_bytes=max_bytes, Key=name
                )
            except NotFoundError:
                return None
            if self._link is not None:
                await self._link.down.carry(len(answer["Body"]))
        return answer if expired or not is_over(answer) else None

    async def names(self, prefix: str, doing: str, start: str = "") -> AsyncIterator[str]:
        """Iterate over the names below a prefix, in order; those up to ``start`` may be left out.

        ``start``, and what is returned, without the prefix.
        """
        async for name, _, _ in self._client.names(prefix, doing, start):
            yield name[len(prefix) :]

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects, whether they are there or not."""
        for start in range(0, len(names), DELETE_AT_ONCE):
            some = [{"Key": name} for name in names[start : start + DELETE_AT_ONCE]]
            answer = await self._client.call(
                "delete_objects", "clear up", Delete={"Objects": some, "Quiet": True}
            )
            for error in answer.get("Errors", ()):
                raise StoreError(
                    f"cannot delete {error.get('Key')} in {self.shown}: {error.get('Code')}"
                )

    async def sweep(self, prefix: str) -> None:
        """Remove all whose key begins so."""
        folder = self.name(prefix)
        await self.delete([f"{folder}{rest}" async for rest in self.names(folder, "clear up")])


def is_over(answer: Mapping[str, Any]) -> bool:
    """By S3's own clock, which alone dates both the object and the answer."""
    ttl_ms = answer["Metadata"].get(_TTL)
    age_s = date_of(answer) - answer["LastModified"].timestamp()
    return ttl_ms is not None and age_s > int(ttl_ms) / 1000 + _CLOCK_STEP_S
