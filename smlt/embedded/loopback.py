"""HTTP on 127.0.0.1 for programs only: a web page in the user's browser must not reach it."""

from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def refuse_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what carries a browser's headers, or came by another host name.

    Any page that a user visits can send requests to a loopback port, and CreateFunction runs code.
    """
    is_local = request.host.partition(":")[0] in ("127.0.0.1", "localhost")
    if not is_local or "Origin" in request.headers or "Sec-Fetch-Mode" in request.headers:
        return web.Response(status=403, text="This endpoint is for programs, not for web pages.")
    return await handler(request)


async def listen(runner: web.AppRunner) -> int:
    """Start serving on a free port of 127.0.0.1 and return it."""
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    return int(runner.addresses[0][1])
