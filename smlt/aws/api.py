"""Calls to AWS: opened when first used, repeated while AWS is busy, refused in one sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aioboto3
from botocore.config import Config
from botocore.exceptions import ClientError

from smlt.config.aws import aws_region
from smlt.control.aws_errors import code_of, translated
from smlt.errors import CloudError

_CONNECT_S = 5.0
_READ_S = 60.0
_ATTEMPTS = 6
_CALL_S = 180.0
"""For a call with all its repetitions."""
_MISSING = {"ResourceNotFoundException", "NoSuchEntity", "NoSuchEntityException", "404"}
_MISSING |= {"RepositoryNotFoundException", "ImageNotFoundException"}


class Api:
    """AWS's services by name. Open it with ``open_api``."""

    def __init__(self, region: str | None, stack: AsyncExitStack) -> None:
        self._session = aioboto3.Session(region_name=region)
        self._stack = stack
        self._clients: dict[str, Any] = {}

    @property
    def region(self) -> str | None:
        """Where the calls go; None if nothing says so."""
        region = self._session.region_name
        return None if region is None else str(region)

    async def call(self, service: str, operation: str, doing: str, **given: Any) -> dict[str, Any]:
        """Call one of boto3's methods; what is None is not given.

        Raises:
            CloudError: AWS refused, or stayed busy or silent through all attempts.
            ConfigError: the credentials do not do.
        """
        async with _limited(doing):
            client = await self._client(service)
            answer = await getattr(client, operation)(**_without_none(given))
            return dict(answer)

    async def find(
        self, service: str, operation: str, doing: str, **given: Any
    ) -> dict[str, Any] | None:
        """Do what ``call`` does, and return None where there is no such thing."""
        async with _limited(doing):
            client = await self._client(service)
            try:
                return dict(await getattr(client, operation)(**_without_none(given)))
            except ClientError as exc:
                if code_of(exc) in _MISSING:
                    return None
                raise

    async def all(
        self, service: str, operation: str, doing: str, key: str, **given: Any
    ) -> list[dict[str, Any]]:
        """Return the items under a key of all pages; none where there is no such thing."""
        async with _limited(doing):
            client = await self._client(service)
            found: list[dict[str, Any]] = []
            try:
                async for page in client.get_paginator(operation).paginate(**_without_none(given)):
                    found.extend(page.get(key, ()))
            except ClientError as exc:
                if code_of(exc) not in _MISSING:
                    raise
            return found

    async def _client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                connect_timeout=_CONNECT_S,
                read_timeout=_READ_S,
            )
            context = self._session.client(service, config=config)
            self._clients[service] = await self._stack.enter_async_context(context)
        return self._clients[service]


@asynccontextmanager
async def _limited(doing: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_CALL_S):
            with translated(doing):
                yield
    except TimeoutError:
        raise CloudError(f"{doing} failed: AWS has not answered within {_CALL_S:g} s") from None


@asynccontextmanager
async def open_api(region: str | None = None) -> AsyncIterator[Api]:
    """Open the way to AWS, with the credentials of the environment."""
    async with AsyncExitStack() as stack:
        yield Api(region or aws_region(), stack)


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
