"""All environments of the embedded cloud: who is warm, who is busy, who may start."""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Self

from smlt.embedded.api_error import ApiError, throttled
from smlt.embedded.environment import Environment, Outcome
from smlt.embedded.functions import Functions, FunctionVersion
from smlt.embedded.host import Host
from smlt.embedded.runtime_api import Invocation

logger = logging.getLogger(__name__)

CGROUP_POLL_S = 0.025
PROC_POLL_S = 0.1
SWEEP_S = 1.0
STARTS_PER_CPU = 4


class Fleet:
    """Runs invocations in warm environments, else in new ones, within the concurrency limits."""

    def __init__(
        self,
        functions: Functions,
        host: Host,
        make_environment: Callable[..., Environment] = Environment,
    ) -> None:
        self._functions = functions
        self._host = host
        self._make_environment = make_environment
        self._idle: dict[tuple[str, str], list[Environment]] = {}
        self._running: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._closing: set[asyncio.Task[None]] = set()
        self._watchers: list[asyncio.Task[None]] = []
        # A start costs 0.1 CPU seconds; a thousand at once would all miss the limit on init.
        self._starts = asyncio.Semaphore(STARTS_PER_CPU * (os.cpu_count() or 1))
        self.environments: set[Environment] = set()
        self.bill: dict[str, dict[str, Any]] = {}

    async def __aenter__(self) -> Self:
        self._watchers = [
            asyncio.create_task(self._watch_memory()),
            asyncio.create_task(self._sweep()),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        for environment in list(self.environments):
            environment.end()
        await asyncio.gather(*self._closing, *self._watchers, return_exceptions=True)

    def reserve_slot(self, name: str) -> None:
        """Take a place for one invocation of a function.

        Raises:
            ApiError: TooManyRequestsException, when the concurrency limit is reached.
        """
        reason = self._why_full(name)
        if reason is not None:
            raise throttled(reason)
        self._running[name] += 1

    async def wait_for_slot(self, name: str, limit_s: float) -> bool:
        """Take a place as soon as there is one; False when the limit passes without."""
        if self._why_full(name) is None:
            self._running[name] += 1
            return True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, place))
        try:
            # Whoever frees a place counts it for us, so none can slip between.
            await asyncio.wait_for(place, limit_s)
        except TimeoutError:
            return False
        return True

    async def run(self, function: FunctionVersion, invocation: Invocation) -> Outcome:
        """Run one event on the place that was taken for it, and give that place back."""
        try:
            environment = await self._acquire(function)
            outcome = await environment.invoke(invocation)
            self._release(environment)
        finally:
            self._running[function.name] -= 1
            self.admit_waiting()
        self._count(function, outcome)
        return outcome

    def retire(self, name: str, version: str | None = None) -> None:
        """End the environments of a function (of one version): idle ones now, busy ones after."""
        for environment in list(self.environments):
            function = environment.function
            if function.name == name and version in (None, function.version):
                environment.retired = True
                if environment.state == "idle":
                    environment.end()

    def kill_idle(self, name: str) -> bool:
        """End one idle environment of a function; whether there was one."""
        for environment in self.environments:
            if environment.function.name == name and environment.state == "idle":
                environment.end()
                return True
        return False

    def kill_busy(self, request_id: str) -> bool:
        """End the environment that runs an event; whether there is one."""
        for environment in self.environments:
            if environment.request_id == request_id and environment.state == "busy":
                environment.end()
                return True
        return False

    def admit_waiting(self) -> None:
        """Give free places to waiting events, oldest first; also after a limit has changed."""
        for entry in list(self._waiting):
            name, place = entry
            if place.done():
                self._waiting.remove(entry)
            elif self._why_full(name) is None:
                self._waiting.remove(entry)
                self._running[name] += 1
                place.set_result(None)

    def _why_full(self, name: str) -> str | None:
        limit = self._host.limits.account_concurrency
        try:
            reserved = self._functions.get(name).reserved
        except ApiError:  # deleted while its events wait
            reserved = None
        if reserved is not None:
            full = self._running[name] >= reserved
            return "ReservedFunctionConcurrentInvocationLimitExceeded" if full else None
        apart = {one.latest.name for one in self._functions.all() if one.reserved is not None}
        running = sum(count for other, count in self._running.items() if other not in apart)
        full = running >= limit - self._functions.reserved_total()
        return "ConcurrentInvocationLimitExceeded" if full else None

    async def _acquire(self, function: FunctionVersion) -> Environment:
        idle = self._idle.get((function.name, function.version), [])
        while idle:
            environment = idle.pop()
            if environment.state == "idle" and environment.function == function:
                return environment
        environment = self._make_environment(function, self._host, self._on_end)
        self.environments.add(environment)
        try:
            async with self._starts:
                await environment.start()
        except BaseException:
            environment.end()
            raise
        return environment

    def _release(self, environment: Environment) -> None:
        if environment.retired:
            environment.end()
        if environment.state == "idle":
            key = (environment.function.name, environment.function.version)
            self._idle.setdefault(key, []).append(environment)

    def _on_end(self, environment: Environment) -> None:
        self.environments.discard(environment)
        idle = self._idle.get((environment.function.name, environment.function.version), [])
        if environment in idle:
            idle.remove(environment)
        task = asyncio.create_task(environment.close())
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an environment could not be cleared up", exc_info=task.exception())

    def _count(self, function: FunctionVersion, outcome: Outcome) -> None:
        entry = self.bill.setdefault(
            function.name, {"invocations": 0, "billed_ms": 0, "gb_s": 0.0, "errors": 0}
        )
        entry["invocations"] += 1
        entry["billed_ms"] += outcome.report.billed_ms
        entry["gb_s"] += outcome.report.gb_s
        entry["errors"] += outcome.error is not None

    async def _watch_memory(self) -> None:
        period = PROC_POLL_S if self._host.isolation.mode == "watchdog" else CGROUP_POLL_S
        while True:
            for environment in list(self.environments):
                environment.check_memory()
            await asyncio.sleep(period)

    async def _sweep(self) -> None:
        while True:
            oldest = time.monotonic() - self._host.limits.idle_s
            for environment in list(self.environments):
                if environment.state == "idle" and environment.idle_since < oldest:
                    environment.end()
            await asyncio.sleep(SWEEP_S)
