"""The part of CloudWatch Logs that reads workers' prints: botocore's JSON protocol on POST /."""

import asyncio
import heapq
import json
import shlex
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from smlt.embedded.api_error import ApiError
from smlt.embedded.log_streams import LogEvent, LogGroups, LogStream

TARGET_PREFIX = "Logs_20140328."
EVENTS_LIMIT = 10_000
LIST_LIMIT = 50


class LogsApi:
    """DescribeLogGroups, DescribeLogStreams, GetLogEvents, FilterLogEvents, DeleteLogGroup."""

    def __init__(self, logs: LogGroups) -> None:
        self._logs = logs

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        action = request.headers.get("X-Amz-Target", "").removeprefix(TARGET_PREFIX)
        actions = {
            "DescribeLogGroups": self._describe_groups,
            "DescribeLogStreams": self._describe_streams,
            "GetLogEvents": self._get_events,
            "FilterLogEvents": self._filter_events,
            "DeleteLogGroup": self._delete_group,
        }
        if action not in actions:
            message = f"The embedded logs know {', '.join(actions)}, not {action!r}."
            return _amz_json({"__type": "UnknownOperationException", "message": message}, 400)
        body = json.loads(await request.read())
        try:
            # Reading events reads files.
            return _amz_json(await asyncio.to_thread(actions[action], body), 200)
        except ApiError as exc:
            return _amz_json({"__type": exc.kind, "message": exc.message}, exc.status)

    def _describe_groups(self, body: dict[str, Any]) -> dict[str, Any]:
        prefix = body.get("logGroupNamePrefix", "")
        groups = [
            {
                "logGroupName": name,
                "creationTime": self._logs.created[name],
                "arn": f"arn:aws:logs:us-east-1:000000000000:log-group:{name}:*",
                "storedBytes": sum(stream.stored_bytes for stream in list(streams.values())),
            }
            for name, streams in sorted(self._logs.groups.items())
            if name.startswith(prefix)
        ]
        return _page(body, "logGroups", groups)

    def _describe_streams(self, body: dict[str, Any]) -> dict[str, Any]:
        prefix = body.get("logStreamNamePrefix", "")
        streams = [one for one in self._streams(body) if one.name.startswith(prefix)]
        by_time = body.get("orderBy") == "LastEventTime"
        streams.sort(
            key=lambda one: (one.last_timestamp if by_time else 0, one.name),
            reverse=bool(body.get("descending")),
        )
        return _page(body, "logStreams", [_shown_stream(one) for one in streams])

    def _get_events(self, body: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream(body)
        first, last = stream.between(body.get("startTime"), body.get("endTime"))
        size = int(body.get("limit", EVENTS_LIMIT))
        kind, _, place = str(body.get("nextToken", "")).partition("/")
        if kind == "f":
            begin = max(first, int(place))
            end = min(last, begin + size)
        elif kind == "b":
            end = min(last, int(place))
            begin = max(first, end - size)
        elif body.get("startFromHead"):
            begin, end = first, min(last, first + size)
        else:
            begin, end = max(first, last - size), last
        return {
            "events": [_shown_event(event) for event in stream.read(begin, end)],
            "nextForwardToken": f"f/{max(begin, end)}",
            "nextBackwardToken": f"b/{begin}",
        }

    def _filter_events(self, body: dict[str, Any]) -> dict[str, Any]:
        names = body.get("logStreamNames")
        prefix = body.get("logStreamNamePrefix", "")
        chosen = [
            stream
            for stream in self._streams(body)
            if stream.name.startswith(prefix) and (names is None or stream.name in names)
        ]
        terms = _terms(body.get("filterPattern", ""))
        skip = int(body.get("nextToken", 0))
        size = min(EVENTS_LIMIT, int(body.get("limit", EVENTS_LIMIT)))
        found: list[dict[str, Any]] = []
        start, end = body.get("startTime"), _exclusive(body.get("endTime"))
        for number, event in enumerate(_merged(chosen, start, end)):
            if number < skip:
                continue
            if len(found) == size:
                return {"events": found, "searchedLogStreams": [], "nextToken": str(number)}
            if all(term in event.message for term in terms):
                identity = f"{event.stream}/{event.index}"
                shown = _shown_event(event) | {"logStreamName": event.stream, "eventId": identity}
                found.append(shown)
        return {"events": found, "searchedLogStreams": []}

    def _delete_group(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self._logs.delete(body.get("logGroupName", "")):
            raise _no_group()
        return {}

    def _streams(self, body: dict[str, Any]) -> list[LogStream]:
        group = body.get("logGroupName") or body.get("logGroupIdentifier", "")
        if group not in self._logs.groups:
            raise _no_group()
        return list(self._logs.groups[group].values())

    def _stream(self, body: dict[str, Any]) -> LogStream:
        for stream in self._streams(body):
            if stream.name == body.get("logStreamName"):
                return stream
        message = "The specified log stream does not exist."
        raise ApiError("ResourceNotFoundException", 400, message)


def _merged(streams: list[LogStream], start: int | None, end: int | None) -> Iterator[LogEvent]:
    """All events in the order of time."""
    ranges = [stream.read(*stream.between(start, end)) for stream in streams]
    return heapq.merge(*ranges, key=lambda event: (event.timestamp, event.stream, event.index))


def _exclusive(end: int | None) -> int | None:
    """FilterLogEvents takes an inclusive end."""
    return None if end is None else end + 1


def _terms(pattern: str) -> list[str]:
    """The words that must all occur; the pattern language beyond words is not supported."""
    if pattern[:1] in ("{", "[", "?", "%"):
        raise ApiError(
            "InvalidParameterException",
            400,
            f"filterPattern {pattern!r}: the embedded logs know words and quoted phrases only.",
        )
    return shlex.split(pattern)


def _shown_event(event: LogEvent) -> dict[str, Any]:
    return {
        "timestamp": event.timestamp,
        "ingestionTime": event.timestamp,
        "message": event.message + "\n",
    }


def _shown_stream(stream: LogStream) -> dict[str, Any]:
    return {
        "logStreamName": stream.name,
        "creationTime": stream.created,
        "firstEventTimestamp": stream.first_timestamp,
        "lastEventTimestamp": stream.last_timestamp,
        "lastIngestionTime": stream.last_timestamp,
        "uploadSequenceToken": str(len(stream)),
        "arn": f"arn:aws:logs:us-east-1:000000000000:log-group:x:log-stream:{stream.name}",
        "storedBytes": 0,
    }


def _page(body: dict[str, Any], key: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    first = int(body.get("nextToken", 0))
    size = min(LIST_LIMIT, int(body.get("limit", LIST_LIMIT)))
    page: dict[str, Any] = {key: items[first : first + size]}
    if first + size < len(items):
        page["nextToken"] = str(first + size)
    return page


def _no_group() -> ApiError:
    return ApiError("ResourceNotFoundException", 400, "The specified log group does not exist.")


def _amz_json(answer: dict[str, Any], status: int) -> web.Response:
    return web.Response(
        body=json.dumps(answer).encode(),
        status=status,
        content_type="application/x-amz-json-1.1",
    )
