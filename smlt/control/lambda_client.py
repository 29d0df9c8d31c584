"""The Lambda API as the scheduler needs it. AWS or embedded, only the endpoint differs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aioboto3
from botocore.config import Config

from smlt.control.aws_errors import translated
from smlt.errors import CloudError

TMP_MB = 512
ROLE = "arn:aws:iam::000000000000:role/smlt"
_EVENT_LIMIT = 1 << 20
_SEND_S = 20.0
"""For sending an event, which the service only queues."""
_LOGS = Config(
    connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
)
_BILLED = re.compile(rb"Billed Duration: (\d+) ms")
_READY_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the service is. AWS's own addresses and credentials are the defaults."""

    url: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line that a function wrote, or that Lambda wrote about it."""

    stream: str
    timestamp_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a function returned that was waited for."""

    payload: Mapping[str, Any]
    billed_ms: int


class LambdaService(Protocol):
    """What a job needs of a Lambda service, once its functions are there."""

    async def invoke(self, name: str, qualifier: str, payload: Mapping[str, Any]) -> str:
        """Send an event, once; return its request id."""
        ...

    async def log_events(self, name: str, since_ms: int) -> list[LogEvent]:
        """Return what the function's invocations have written since a moment, in order."""
        ...


class LambdaClient:
    """Functions, event invocations and logs. Open it with ``lambda_client``."""

    def __init__(self, functions: Any, logs: Any) -> None:
        self._functions = functions
        self._logs = logs

    async def create_function(
        self,
        name: str,
        package: bytes,
        *,
        handler: str,
        memory_mb: int,
        timeout_s: int,
        environment: Mapping[str, str],
        runtime: str,
    ) -> str:
        """Create a function and publish a version of it; return the version's qualifier."""
        with translated(f"creating the function {name}"):
            with contextlib.suppress(self._functions.exceptions.ResourceConflictException):
                # An earlier client of the job has made it: the name tells its code and its size.
                await self._functions.create_function(
                    FunctionName=name,
                    Runtime=runtime,
                    Role=ROLE,
                    Handler=handler,
                    Code={"ZipFile": package},
                    MemorySize=memory_mb,
                    Timeout=timeout_s,
                    EphemeralStorage={"Size": TMP_MB},
                    Environment={"Variables": dict(environment)},
                )
            await self._until_ready(name)
            published = await self._functions.publish_version(FunctionName=name)
            await self._until_ready(name, published["Version"])
            # A retry by the service would be a second worker under the first one's name. Each
            # version has a configuration of its own.
            await self._functions.put_function_event_invoke_config(
                FunctionName=name,
                Qualifier=published["Version"],
                MaximumRetryAttempts=0,
                MaximumEventAgeInSeconds=60,
            )
        return str(published["Version"])

    async def invoke(self, name: str, qualifier: str, payload: Mapping[str, Any]) -> str:
        """Send an event; return its request id. Never retried: twice sent is two workers."""
        body = json.dumps(payload).encode()
        if len(body) > _EVENT_LIMIT:
            raise CloudError(f"an event of {len(body)} bytes exceeds Lambda's limit of 1 MB")
        doing = f"invoking {name}"
        try:
            async with asyncio.timeout(_SEND_S):
                with translated(doing):
                    answer = await self._functions.invoke(
                        FunctionName=name, Qualifier=qualifier, InvocationType="Event", Payload=body
                    )
        except TimeoutError:
            raise CloudError(f"{doing} failed: no answer within {_SEND_S:g} s") from None
        return str(answer["ResponseMetadata"]["RequestId"])

    async def call(
        self, name: str, qualifier: str, payload: Mapping[str, Any], limit_s: float
    ) -> Answer:
        """Invoke a function and wait for what it returns.

        Raises:
            CloudError: it could not be invoked, failed, or did not end within the limit; it may
                have done all the same what it was asked.
        """
        doing = f"calling {name}"
        try:
            async with asyncio.timeout(limit_s):
                with translated(doing):
                    answer = await self._functions.invoke(
                        FunctionName=name,
                        Qualifier=qualifier,
                        LogType="Tail",
                        Payload=json.dumps(payload).encode(),
                    )
                    said = json.loads(await answer["Payload"].read())
        except TimeoutError:
            raise CloudError(f"{doing} failed: no answer within {limit_s:g} s") from None
        if "FunctionError" in answer:
            raise CloudError(f"{doing} failed: {said.get('errorMessage', said)}")
        billed = _BILLED.search(b64decode(answer.get("LogResult", "")))
        return Answer(said, int(billed[1]) if billed else 0)

    async def delete_function(self, name: str) -> None:
        """Delete the function with all its versions; one that is gone is no error."""
        with translated(f"deleting the function {name}"):
            try:
                await self._functions.delete_function(FunctionName=name)
            except self._functions.exceptions.ResourceNotFoundException:
                return

    async def log_events(self, name: str, since_ms: int) -> list[LogEvent]:
        """Return what the function's invocations have written since a moment, in order."""
        events: list[LogEvent] = []
        request = {"logGroupName": f"/aws/lambda/{name}", "startTime": since_ms}
        with translated(f"reading the logs of {name}"):
            while True:
                try:
                    page = await self._logs.filter_log_events(**request)
                except self._logs.exceptions.ResourceNotFoundException:
                    return events
                events.extend(
                    LogEvent(event["logStreamName"], event["timestamp"], event["message"])
                    for event in page["events"]
                )
                if "nextToken" not in page:
                    return events
                request["nextToken"] = page["nextToken"]

    async def _until_ready(self, name: str, qualifier: str = "$LATEST") -> None:
        give_up = time.monotonic() + _READY_S
        while True:
            found = await self._functions.get_function_configuration(
                FunctionName=name, Qualifier=qualifier
            )
            state, update = found.get("State", "Active"), found.get("LastUpdateStatus")
            if state == "Failed" or update == "Failed":
                reason = found.get("StateReason") or found.get("LastUpdateStatusReason")
                raise CloudError(f"the function {name} cannot be made ready: {reason}")
            if state == "Active" and update in (None, "Successful"):
                return
            if time.monotonic() > give_up:
                raise CloudError(f"the function {name} is not ready after {_READY_S:g} s")
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def lambda_client(endpoint: Endpoint) -> AsyncIterator[LambdaClient]:
    """Open connections to the Lambda and CloudWatch Logs APIs."""
    session = aioboto3.Session(
        aws_access_key_id=endpoint.access_key, aws_secret_access_key=endpoint.secret_key
    )
    options = {"endpoint_url": endpoint.url, "region_name": endpoint.region}
    once = Config(retries={"total_max_attempts": 1}, max_pool_connections=64, connect_timeout=5)
    async with (
        session.client("lambda", config=once, **options) as functions,
        session.client("logs", config=_LOGS, **options) as logs,
    ):
        yield LambdaClient(functions, logs)
