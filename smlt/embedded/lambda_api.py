"""The Lambda control API, on the paths and in the shapes that botocore uses."""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from smlt.embedded.api_error import ApiError, invalid, not_found, too_large
from smlt.embedded.code_packages import CodePackage, unpack
from smlt.embedded.fleet import Fleet
from smlt.embedded.functions import LATEST, Function, Functions, FunctionVersion, split_name
from smlt.embedded.host import Host

logger = logging.getLogger(__name__)

FUNCTIONS = "/2015-03-31/functions"
BIG_BODY_BYTES = 100_000
"""Parsing more than this much JSON takes over a millisecond and leaves the event loop."""
EVENT_SETTING_BOUNDS = {"MaximumRetryAttempts": (0, 2), "MaximumEventAgeInSeconds": (60, 21600)}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn refusals into the answers that botocore raises as ClientError."""
    try:
        return await handler(request)
    except ApiError as exc:
        return _error_response(exc)
    except web.HTTPRequestEntityTooLarge as exc:
        return _error_response(too_large(f"The request is too large: {exc.text}"))
    except web.HTTPNotFound:
        message = f"{request.method} {request.path} is no call that the embedded cloud knows."
        return _error_response(ApiError("UnknownOperationException", 404, message))
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        message = (
            "The embedded cloud failed at this call; logs/cloud.log in its run directory says how."
        )
        return _error_response(ApiError("ServiceException", 500, message))


class LambdaApi:
    """The calls about functions and their settings, each a method named as the call."""

    def __init__(self, functions: Functions, fleet: Fleet, host: Host) -> None:
        self._functions = functions
        self._fleet = fleet
        self._limits = host.limits
        self._code_dir = host.run_dir / "code"

    def add_routes(self, app: web.Application) -> None:
        one = f"{FUNCTIONS}/{{name}}"
        concurrency = "/functions/{name}/concurrency"
        settings = "/2019-09-25/functions/{name}/event-invoke-config"
        app.add_routes(
            [
                web.post(FUNCTIONS, self.create_function),
                web.get(FUNCTIONS, self.list_functions),
                web.get(f"{FUNCTIONS}/", self.list_functions),
                web.get(one, self.get_function),
                web.delete(one, self.delete_function),
                web.get(f"{one}/configuration", self.get_function_configuration),
                web.put(f"{one}/configuration", self.update_function_configuration),
                web.put(f"{one}/code", self.update_function_code),
                web.post(f"{one}/versions", self.publish_version),
                web.get(f"{one}/versions", self.list_versions_by_function),
                web.put(f"/2017-10-31{concurrency}", self.put_function_concurrency),
                web.delete(f"/2017-10-31{concurrency}", self.delete_function_concurrency),
                web.get(f"/2019-09-30{concurrency}", self.get_function_concurrency),
                web.put(settings, self.put_event_invoke_config),
                web.post(settings, self.update_event_invoke_config),
                web.get(settings, self.get_event_invoke_config),
                web.delete(settings, self.delete_event_invoke_config),
                web.get("/2016-08-19/account-settings", self.get_account_settings),
            ]
        )

    async def create_function(self, request: web.Request) -> web.Response:
        body = await _json_body(request)
        code = await self._package(body.get("Code") or {})
        created = self._functions.create(body, code)
        return web.json_response(created.configuration(bool(body.get("Publish"))), status=201)

    async def list_functions(self, request: web.Request) -> web.Response:
        shown = [function.latest.configuration(False) for function in self._functions.all()]
        return web.json_response(_page(request, "Functions", shown))

    async def get_function(self, request: web.Request) -> web.Response:
        function, version = self._named(request)
        answer: dict[str, Any] = {
            "Configuration": version.configuration("Qualifier" in request.query),
            "Code": {"RepositoryType": "S3", "Location": version.code.root.as_uri()},
        }
        if function.tags:
            answer["Tags"] = function.tags
        if function.reserved is not None:
            answer["Concurrency"] = {"ReservedConcurrentExecutions": function.reserved}
        return web.json_response(answer)

    async def get_function_configuration(self, request: web.Request) -> web.Response:
        _, version = self._named(request)
        return web.json_response(version.configuration("Qualifier" in request.query))

    async def update_function_configuration(self, request: web.Request) -> web.Response:
        name, _ = split_name(request.match_info["name"])
        updated = self._functions.update(name, await _json_body(request))
        self._fleet.retire(name, LATEST)
        return web.json_response(updated.configuration(False))

    async def update_function_code(self, request: web.Request) -> web.Response:
        name, _ = split_name(request.match_info["name"])
        body = await _json_body(request)
        self._functions.get(name)
        code = await self._package(body)
        if body.get("DryRun"):
            return web.json_response(self._functions.get(name).latest.configuration(False))
        updated = self._functions.update(name, body, code)
        self._fleet.retire(name, LATEST)
        return web.json_response(updated.configuration(bool(body.get("Publish"))))

    async def publish_version(self, request: web.Request) -> web.Response:
        name, _ = split_name(request.match_info["name"])
        published = self._functions.publish(name, await _json_body(request))
        return web.json_response(published.configuration(), status=201)

    async def list_versions_by_function(self, request: web.Request) -> web.Response:
        function, _ = self._named(request)
        shown = [version.configuration() for version in function.versions.values()]
        return web.json_response(_page(request, "Versions", shown))

    async def delete_function(self, request: web.Request) -> web.Response:
        name, qualifier = name_and_qualifier(request)
        self._functions.delete(name, qualifier)
        self._fleet.retire(name, qualifier)
        self._fleet.admit_waiting()
        return web.Response(status=204)

    async def put_function_concurrency(self, request: web.Request) -> web.Response:
        name, _ = split_name(request.match_info["name"])
        count = (await _json_body(request)).get("ReservedConcurrentExecutions")
        if not isinstance(count, int):
            raise invalid("ReservedConcurrentExecutions must be a whole number.")
        self._functions.reserve(name, count)
        self._fleet.admit_waiting()
        return web.json_response({"ReservedConcurrentExecutions": count})

    async def get_function_concurrency(self, request: web.Request) -> web.Response:
        function, _ = self._named(request)
        reserved = function.reserved
        return web.json_response(
            {} if reserved is None else {"ReservedConcurrentExecutions": reserved}
        )

    async def delete_function_concurrency(self, request: web.Request) -> web.Response:
        name, _ = split_name(request.match_info["name"])
        self._functions.reserve(name, None)
        self._fleet.admit_waiting()
        return web.Response(status=204)

    async def put_event_invoke_config(self, request: web.Request) -> web.Response:
        return await self._set_events(request, keep=False)

    async def update_event_invoke_config(self, request: web.Request) -> web.Response:
        return await self._set_events(request, keep=True)

    async def get_event_invoke_config(self, request: web.Request) -> web.Response:
        function, version = self._named(request)
        settings = function.event_settings.get(version.version)
        if settings is None:
            raise not_found(f"The function {version.arn} doesn't have an EventInvokeConfig")
        return web.json_response({"FunctionArn": version.arn, **settings})

    async def delete_event_invoke_config(self, request: web.Request) -> web.Response:
        function, version = self._named(request)
        function.event_settings.pop(version.version, None)
        return web.Response(status=204)

    async def get_account_settings(self, request: web.Request) -> web.Response:
        limit = self._limits.account_concurrency
        unreserved = limit - self._functions.reserved_total()
        return web.json_response(
            {
                "AccountLimit": {
                    "TotalCodeSize": 80530636800,
                    "CodeSizeZipped": self._limits.zipped_bytes,
                    "CodeSizeUnzipped": self._limits.unzipped_bytes,
                    "ConcurrentExecutions": limit,
                    "UnreservedConcurrentExecutions": unreserved,
                },
                "AccountUsage": {"FunctionCount": len(self._functions.all()), "TotalCodeSize": 0},
            }
        )

    async def _set_events(self, request: web.Request, *, keep: bool) -> web.Response:
        function, version = self._named(request)
        body = await _json_body(request)
        settings = dict(function.event_settings.get(version.version, {})) if keep else {}
        for key, (low, high) in EVENT_SETTING_BOUNDS.items():
            value = body.get(key)
            if value is not None:
                if not isinstance(value, int) or not low <= value <= high:
                    raise invalid(f"{key} must lie between {low} and {high}, not {value!r}.")
                settings[key] = value
        function.event_settings[version.version] = settings
        return web.json_response({"FunctionArn": version.arn, **settings})

    async def _package(self, code: dict[str, Any]) -> CodePackage:
        if not code.get("ZipFile"):
            raise invalid("The embedded cloud takes code as ZipFile only, not from S3 or an image.")
        return await asyncio.to_thread(unpack, code["ZipFile"], self._code_dir, self._limits)

    def _named(self, request: web.Request) -> tuple[Function, FunctionVersion]:
        name, qualifier = name_and_qualifier(request)
        return self._functions.get(name), self._functions.version(name, qualifier)


def name_and_qualifier(request: web.Request) -> tuple[str, str | None]:
    name, qualifier = split_name(request.match_info["name"])
    return name, request.query.get("Qualifier", qualifier)


async def _json_body(request: web.Request) -> dict[str, Any]:
    body = await request.read()
    try:
        loads = json.loads
        parsed = (
            await asyncio.to_thread(loads, body)
            if len(body) > BIG_BODY_BYTES
            else loads(body or b"{}")
        )
    except ValueError as exc:
        raise ApiError(
            "InvalidRequestContentException", 400, f"The body is no JSON: {exc}"
        ) from exc
    if not isinstance(parsed, dict):
        raise ApiError("InvalidRequestContentException", 400, "The body is no JSON object.")
    return parsed


def _page(request: web.Request, key: str, items: list[Any]) -> dict[str, Any]:
    try:
        first = int(request.query.get("Marker", "0"))
        size = min(50, int(request.query.get("MaxItems", "50")))
    except ValueError as exc:
        raise invalid("Marker and MaxItems must be numbers that this API has given.") from exc
    page: dict[str, Any] = {key: items[first : first + size]}
    if first + size < len(items):
        page["NextMarker"] = str(first + size)
    return page


def _error_response(error: ApiError) -> web.Response:
    body = {"Type": "User", "message": error.message, "Message": error.message, **error.fields}
    headers = {"x-amzn-ErrorType": error.kind, "x-amzn-RequestId": str(uuid.uuid4())}
    return web.json_response(body, status=error.status, headers=headers)
