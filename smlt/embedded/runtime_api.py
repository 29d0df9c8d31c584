"""The Lambda Runtime API of one environment: what `awslambdaric` polls and answers to.

Each environment has a port of its own, for the runtime client takes no path prefix.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from smlt.embedded.ending import TOO_LARGE_RESPONSE, Ending, error_body
from smlt.embedded.limits import Limits
from smlt.embedded.loopback import listen, refuse_browsers

PREFIX = "/2018-06-01/runtime"
ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One event on its way to a handler."""

    request_id: str
    payload: bytes
    client_context: str | None = None


class RuntimeApi:
    """Serves one process's runtime client. The phase's ending is a future that others end too."""

    def __init__(self, limits: Limits, on_poll: Callable[[], None]) -> None:
        self._limits = limits
        self._on_poll = on_poll
        self._runner: web.AppRunner | None = None
        self._offered: asyncio.Future[web.Response] | None = None
        self._current: str | None = None
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.port = 0
        self.is_polled = False

    async def __aenter__(self) -> Self:
        # Large enough that our own limit speaks first and in Lambda's words.
        app = web.Application(client_max_size=1 << 30, middlewares=[refuse_browsers])
        app.router.add_get(f"{PREFIX}/invocation/next", self._next)
        app.router.add_post(f"{PREFIX}/invocation/{{id}}/response", self._response)
        app.router.add_post(f"{PREFIX}/invocation/{{id}}/error", self._error)
        app.router.add_post(f"{PREFIX}/init/error", self._init_error)
        # Without cancellation a killed process would leave its long poll waiting, and served next.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.0
        )
        self.port = await listen(self._runner)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def begin_phase(self) -> asyncio.Future[Ending]:
        """Start a phase; what happens from now on ends it."""
        self._current = None
        self.ending = asyncio.get_running_loop().create_future()
        return self.ending

    def end_phase(self, ending: Ending) -> None:
        """End the phase unless it has ended: the first cause counts."""
        if not self.ending.done():
            self.ending.set_result(ending)

    def offer(self, invocation: Invocation, *, arn: str, deadline_ms: int) -> None:
        """Hand an event to the process at its next poll."""
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
            "Lambda-Runtime-Deadline-Ms": str(deadline_ms),
            "Lambda-Runtime-Invoked-Function-Arn": arn,
            "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
            "Content-Type": "application/json",
        }
        if invocation.client_context is not None:
            headers["Lambda-Runtime-Client-Context"] = invocation.client_context
        self._current = invocation.request_id
        if self._offered is None or self._offered.done():
            self._offered = asyncio.get_running_loop().create_future()
        self._offered.set_result(web.Response(body=invocation.payload, headers=headers))

    async def _next(self, request: web.Request) -> web.Response:
        if self._current is None:
            self.end_phase(Ending("ready"))
        if self._offered is None:
            self._offered = asyncio.get_running_loop().create_future()
        if not self._offered.done():
            self.is_polled = True
            self._on_poll()
        # Shielded: when this poll's client dies, the future must still be there for the offer.
        response = await asyncio.shield(self._offered)
        self._offered, self.is_polled = None, False
        return response

    async def _response(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self._is_current(request):
            return _refusal(400, "InvalidRequestID", "Invalid request ID")
        limit = self._limits.sync_payload_bytes
        if len(body) > limit:
            message = (
                f"Response payload size ({len(body)} bytes) exceeded maximum allowed payload size "
                f"({limit} bytes)."
            )
            body = error_body(TOO_LARGE_RESPONSE, message)
            self._finish(Ending("error", body, TOO_LARGE_RESPONSE))
            return _refusal(413, "RequestEntityTooLarge", message)
        self._finish(Ending("response", body))
        return _accepted()

    async def _error(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self._is_current(request):
            return _refusal(400, "InvalidRequestID", "Invalid request ID")
        self._finish(Ending("error", body, request.headers.get(ERROR_TYPE, "")))
        return _accepted()

    async def _init_error(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.end_phase(Ending("error", body, request.headers.get(ERROR_TYPE, "")))
        return _accepted()

    def _is_current(self, request: web.Request) -> bool:
        return self._current is not None and request.match_info["id"] == self._current

    def _finish(self, ending: Ending) -> None:
        self._current = None
        self.end_phase(ending)


def _accepted() -> web.Response:
    return web.json_response({"status": "OK"}, status=202)


def _refusal(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"errorMessage": message, "errorType": kind}, status=status)
