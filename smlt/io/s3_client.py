"""Calls to one bucket: repeated while S3 is busy, counted, and bound to one event loop."""

from __future__ import annotations

import asyncio
import email.utils
import io
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import aioboto3
import aiobotocore.session
import boto3
import botocore.session
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.loaders import create_loader

from smlt.config.aws import aws_region
from smlt.errors import FrameError
from smlt.io.s3_address import S3Address
from smlt.io.s3_errors import FOREIGN, Attempts

CONNECTIONS = 64
_CONNECT_S = 5.0
_ATTEMPT_S = 10.0
"""Of a call's time, what one attempt may wait. A peer that closes while we write may never say so:
the connection stands still, and only a new one helps."""
_SLOWEST_BYTES_S = 1e6
"""What a link moves that is worth waiting for."""

_DESCRIPTIONS = create_loader()
"""Of AWS's APIs. Parsing them takes most of the time of the first client, so all share them."""


class S3Client:
    """Connects when it is first used. ``close`` it on the loop that used it."""

    def __init__(self, address: S3Address, *, time_limit_s: float) -> None:
        self.address = address
        self.requests: Counter[str] = Counter()
        """Requests sent so far, by S3's name of the operation: what S3 bills."""
        self._ahead_s = -time.monotonic()
        self._time_limit_s = time_limit_s
        self._attempt_s = min(_ATTEMPT_S, time_limit_s)
        self._stack = AsyncExitStack()
        self._opening: asyncio.Lock | None = None
        self._client: Any = None
        self._blocking: Any = None
        self._blocking_lock = threading.Lock()

    def now(self) -> float:
        """Return the time by S3's clock, in seconds since 1970, as its answers tell it.

        They tell whole seconds that have passed: the one that is most ahead is nearest to the
        truth. It never goes back.
        """
        return time.monotonic() + self._ahead_s

    async def call(
        self,
        operation: str,
        doing: str,
        *,
        into: memoryview | None = None,
        max_bytes: int | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Call one of boto3's methods, with a body in the answer read to its end.

        Args:
            operation: the method's name.
            doing: what it is for, as in "read a/b", for messages.
            into: where a body shall lie if it fits, as ``Body``; else that is new bytes.
            max_bytes: the largest body that is expected.
            parameters: the call's own, without ``Bucket``.

        Raises:
            SmltError: as ``ObjectStore`` says.
        """
        attempts = self._attempts(doing)
        body = parameters.get("Body")
        attempt_s = self._attempt_s + len(body or b"") / _SLOWEST_BYTES_S
        while True:
            if body is not None:
                parameters["Body"] = io.BytesIO(body)  # each attempt reads it from its beginning
            try:
                client = await self._opened()
                call = getattr(client, operation)
                # Reading has a limit of its own, for every chunk.
                async with asyncio.timeout(attempt_s):
                    answer = await call(Bucket=self.address.bucket, **parameters)
                self._ahead_s = max(self._ahead_s, date_of(answer) - time.monotonic())
                if "Body" in answer:
                    _check_size(answer, max_bytes, parameters["Key"])
                    answer["Body"] = await _read(answer["Body"], answer["ContentLength"], into)
            except FOREIGN as exc:
                pause_s = attempts.pause(exc)
            else:
                return dict(answer)
            await asyncio.sleep(pause_s)

    def call_blocking(self, operation: str, doing: str, **parameters: Any) -> dict[str, Any]:
        """Do what ``call`` does, from any thread that has no event loop to keep going."""
        attempts = self._attempts(doing)
        while True:
            try:
                client = self._opened_blocking()
                answer = getattr(client, operation)(Bucket=self.address.bucket, **parameters)
                if "Body" in answer:
                    answer["Body"] = answer["Body"].read()
            except FOREIGN as exc:
                pause_s = attempts.pause(exc)
            else:
                return dict(answer)
            time.sleep(pause_s)

    async def names(
        self, prefix: str, doing: str, start: str = ""
    ) -> AsyncIterator[tuple[str, int, str]]:
        """Iterate over names, sizes and ETags of the objects with a prefix, in order.

        Those up to ``prefix + start`` may be left out.
        """
        if not self.address.is_directory_bucket:
            more = {"StartAfter": f"{prefix}{start}"} if start else {}
            async for entry in self._listed(prefix, doing, more):
                yield entry["Key"], entry["Size"], entry.get("ETag", "")
            return
        # A directory bucket lists only by directories, and in an order of its own.
        parent = prefix[: prefix.rfind("/") + 1]
        listed = self._listed(parent, doing, {})
        found = [(e["Key"], e["Size"], e.get("ETag", "")) async for e in listed]
        for name, size, tag in sorted(found):
            if name.startswith(prefix):
                yield name, size, tag

    async def _listed(
        self, prefix: str, doing: str, parameters: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        more: dict[str, Any] = {}
        while True:
            page = await self.call("list_objects_v2", doing, Prefix=prefix, **parameters, **more)
            for entry in page.get("Contents", ()):
                yield entry
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _attempts(self, doing: str) -> Attempts:
        return Attempts(self.address, doing, self._time_limit_s)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client = None
        await self._stack.aclose()
        with self._blocking_lock:
            if self._blocking is not None:
                self._blocking.close()
            self._blocking = None

    async def _opened(self) -> Any:
        if self._client is None:
            self._opening = self._opening or asyncio.Lock()
            async with self._opening:
                if self._client is None:
                    session = aiobotocore.session.get_session()
                    context = self._client_of(aioboto3.Session, session)
                    client = await self._stack.enter_async_context(context)
                    client.meta.events.register("before-send.s3", self._count)
                    # It would cost a round trip a write, and aiohttp waits for its answer for ever.
                    client.meta.events.unregister("before-call.s3", add_expect_header)
                    self._client = client
        return self._client

    def _opened_blocking(self) -> Any:
        with self._blocking_lock:
            if self._blocking is None:
                self._blocking = self._client_of(boto3.Session, botocore.session.get_session())
                self._blocking.meta.events.register("before-send.s3", self._count)
            return self._blocking

    def _client_of(self, kind: Callable[..., Any], session: Any) -> Any:
        session.register_component("data_loader", _DESCRIPTIONS)
        address = self.address
        config = Config(
            # We repeat calls ourselves: by time, and knowing what an earlier attempt may have done.
            retries={"total_max_attempts": 1},
            connect_timeout=min(_CONNECT_S, self._attempt_s),
            read_timeout=self._attempt_s,
            max_pool_connections=CONNECTIONS,
            # Few compatible services know buckets by host names.
            s3={
                "addressing_style": "path" if address.endpoint else "auto",
                # TLS keeps a payload whole; over plain HTTP it is signed all the same.
                "payload_signing_enabled": False,
            },
            # Frames and checkpoints carry their own; not every compatible service knows S3's.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = address.region or aws_region()
        return kind(botocore_session=session).client(
            "s3", endpoint_url=address.endpoint, region_name=region, config=config
        )

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1


def date_of(answer: Mapping[str, Any]) -> float:
    """Return when S3 answered, by its clock, in seconds since 1970; it tells whole ones.

    By ours, where a compatible service does not tell.
    """
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return time.time()
    return email.utils.parsedate_to_datetime(date).timestamp()


def _check_size(answer: dict[str, Any], max_bytes: int | None, name: str) -> None:
    size = answer["ContentLength"]
    if max_bytes is not None and size > max_bytes:
        answer["Body"].close()
        raise FrameError(f"{name} has {size} bytes, not {max_bytes}")


async def _read(stream: Any, length: int, into: memoryview | None) -> bytes | memoryview:
    async with stream:
        if into is None or into.nbytes < length:
            return bytes(await stream.read())
        view, at = into.cast("B"), 0
        while chunk := await stream.read(1 << 18):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
        return view[:at].toreadonly()
