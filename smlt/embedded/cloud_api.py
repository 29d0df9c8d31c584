"""What AWS has no call for: the cloud's own state, bill and end, below ``/_smlt/``."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from smlt.embedded.event_queue import EventQueue
from smlt.embedded.fleet import Fleet
from smlt.embedded.lifetime import Lifetime


class CloudApi:
    """The calls about the cloud itself; ``ready`` gives what ``cloud.json`` holds, too."""

    def __init__(
        self,
        ready: Callable[[], dict[str, Any]],
        fleet: Fleet,
        events: EventQueue,
        lifetime: Lifetime,
    ) -> None:
        self._ready = ready
        self._fleet = fleet
        self._events = events
        self._lifetime = lifetime

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get("/_smlt/health", self.health),
                web.get("/_smlt/environments", self.environments),
                web.get("/_smlt/bill", self.bill),
                web.post("/_smlt/hold", self.hold),
                web.delete("/_smlt/cloud", self.end),
            ]
        )

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({**self._ready(), "waiting_events": len(self._events)})

    async def environments(self, request: web.Request) -> web.Response:
        return web.json_response([one.describe() for one in self._fleet.environments])

    async def bill(self, request: web.Request) -> web.Response:
        return web.json_response(self._fleet.bill)

    async def hold(self, request: web.Request) -> web.Response:
        try:
            seconds = float((await request.json())["seconds"])
        except (ValueError, KeyError, TypeError):
            return web.Response(status=400, text='Send {"seconds": NUMBER}.')
        self._lifetime.hold(seconds)
        left_s = self._lifetime.left_s
        return web.json_response({"ends": left_s is not None, "seconds_left": left_s})

    async def end(self, request: web.Request) -> web.Response:
        self._lifetime.end()
        return web.Response(status=202)
