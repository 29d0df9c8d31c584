"""A Lambda service that takes events as fast as AWS grants it, and refuses the rest with 429.

    python -m tests.aws.throttling_lambda STORE_URL WORKERS AT_ONCE PER_SECOND

It prints its port. An event that it takes becomes a connection to the parameter store, of a process
in which all workers are. ``GET /counts`` says what has come.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid

from aiohttp import web


class ThrottlingLambda:
    def __init__(self, workers, at_once, per_second):
        self._workers = workers
        self._tokens = self._most_tokens = float(at_once)
        self._per_second = float(per_second)
        self._filled = time.monotonic()
        self._under_way = 0
        self.counts = {"taken": 0, "throttled": 0, "at_once": 0, "log_reads": 0}

    def _may(self):
        now = time.monotonic()
        more = (now - self._filled) * self._per_second
        self._tokens, self._filled = min(self._most_tokens, self._tokens + more), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    async def invoke(self, request):
        self._under_way += 1
        self.counts["at_once"] = max(self.counts["at_once"], self._under_way)
        try:
            payload = await request.read()
            await asyncio.sleep(0.02)  # as far as AWS is
            if not self._may():
                self.counts["throttled"] += 1
                body = {"Reason": "ConcurrentInvocationLimitExceeded", "message": "Rate Exceeded."}
                kind = {"x-amzn-ErrorType": "TooManyRequestsException"}
                return web.json_response(body, status=429, headers=kind)
            self.counts["taken"] += 1
            self._workers.stdin.write(payload + b"\n")
            await self._workers.stdin.drain()
            return web.Response(status=202, headers={"x-amzn-RequestId": str(uuid.uuid4())})
        finally:
            self._under_way -= 1

    async def read_log(self, request):
        self.counts["log_reads"] += 1
        return web.json_response({"events": []})

    async def say_counts(self, request):
        return web.json_response(self.counts)


async def main():
    store, workers, at_once, per_second = sys.argv[1:]
    fleet = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scaling.socket_workers", store, workers),
        stdin=asyncio.subprocess.PIPE,
    )
    service = ThrottlingLambda(fleet, at_once, per_second)
    app = web.Application()
    path = "/2015-03-31/functions/{name}/invocations"
    app.add_routes([web.post(path, service.invoke), web.post("/", service.read_log)])
    app.add_routes([web.get("/counts", service.say_counts)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    try:
        # Whoever started us closes our input when it is done.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    finally:
        if fleet.returncode is None:
            fleet.kill()
        await fleet.wait()
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
