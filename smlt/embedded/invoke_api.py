"""Lambda's Invoke call: synchronous, asynchronous, or dry."""

import asyncio
import base64
import json
import uuid

from aiohttp import web

from smlt.embedded.api_error import ApiError, invalid, throttled, too_large
from smlt.embedded.event_queue import EventQueue, EventSettings
from smlt.embedded.fleet import Fleet
from smlt.embedded.functions import Functions
from smlt.embedded.host import Host
from smlt.embedded.hostile import Hostility
from smlt.embedded.lambda_api import BIG_BODY_BYTES, FUNCTIONS, name_and_qualifier
from smlt.embedded.runtime_api import Invocation


class InvokeApi:
    """Checks an event, and hands it to the fleet or to the queue."""

    def __init__(
        self,
        functions: Functions,
        fleet: Fleet,
        events: EventQueue,
        host: Host,
        hostility: Hostility | None = None,
    ) -> None:
        self._hostility = hostility
        self._functions = functions
        self._fleet = fleet
        self._events = events
        self._limits = host.limits

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post(f"{FUNCTIONS}/{{name}}/invocations", self.invoke)

    async def invoke(self, request: web.Request) -> web.Response:
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        name, qualifier = name_and_qualifier(request)
        function = self._functions.get(name)
        version = self._functions.version(name, qualifier)
        payload = await request.read()
        await self._check_payload(payload, kind)
        invocation = Invocation(
            request_id=str(uuid.uuid4()),
            payload=payload or b"{}",
            client_context=_client_context(request),
        )
        headers = {"x-amzn-RequestId": invocation.request_id}
        if kind == "DryRun":
            return web.Response(status=204, headers=headers)
        if kind == "Event":
            if self._hostility is not None and self._hostility.throttles():
                raise throttled("CallerRateLimitExceeded")
            configured = function.event_settings.get(version.version)
            self._events.put(version, invocation, EventSettings.of(configured, self._limits))
            return web.Response(status=202, headers=headers)
        self._fleet.reserve_slot(version.name)
        outcome = await self._fleet.run(version, invocation)
        headers["X-Amz-Executed-Version"] = version.version
        headers["Content-Type"] = "application/json"
        if outcome.error is not None:
            headers["X-Amz-Function-Error"] = outcome.error
        if request.headers.get("X-Amz-Log-Type") == "Tail":
            headers["X-Amz-Log-Result"] = base64.b64encode(outcome.log_tail).decode()
        return web.Response(body=outcome.payload, headers=headers)

    async def _check_payload(self, payload: bytes, kind: str) -> None:
        bounds = {
            "RequestResponse": self._limits.sync_payload_bytes,
            "Event": self._limits.async_payload_bytes,
            "DryRun": self._limits.sync_payload_bytes,
        }
        if kind not in bounds:
            raise invalid(f"{kind!r} is no invocation type; use {', '.join(bounds)}.")
        if len(payload) > bounds[kind]:
            raise too_large(
                f"{len(payload)} byte payload is too large for the {kind} invocation type "
                f"(limit {bounds[kind]} bytes)"
            )
        try:
            if len(payload) > BIG_BODY_BYTES:
                await asyncio.to_thread(json.loads, payload)
            elif payload:
                json.loads(payload)
        except ValueError as exc:
            message = f"Could not parse request body into json: {exc}"
            raise ApiError("InvalidRequestContentException", 400, message) from exc


def _client_context(request: web.Request) -> str | None:
    encoded = request.headers.get("X-Amz-Client-Context")
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except ValueError as exc:
        raise ApiError(
            "InvalidRequestContentException", 400, "ClientContext is no base64 of UTF-8 text."
        ) from exc
