"""The parameter store as a client has it that cannot reach it: through a function that can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smlt.control.lambda_client import Answer
from smlt.errors import CloudError, SmltError, StoreUnreachableError
from smlt.io import gateway
from smlt.io.parameter_store import ControlStore, Notice

POLL_S = 0.3
"""Between two looks for notices, when nothing else has to be asked: each look is a call."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_COLD_S = 10.0
"""What a call may take beside what the store takes: a function that has to start first."""

Invoke = Callable[[Mapping[str, Any], float], Awaitable[Answer]]
"""Calls the function with an event; gives up after so many seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    call: gateway.Call
    is_patient: bool
    """Whether it may wait for the next look."""
    answer: asyncio.Future[Any]


class GatewayStore(ControlStore):
    """A ControlStore: no frames go through a function.

    One call is under way at a time, so that one execution environment serves a client. All that is
    asked meanwhile goes into the next one, and so does a look for notices, if there is a reader.
    """

    def __init__(
        self,
        url: str,
        invoke: Invoke,
        *,
        time_limit_s: float,
        billed: Callable[[int], None] = lambda milliseconds: None,
        poll_s: float = POLL_S,
    ) -> None:
        """Take the store's URL as functions have it; ``billed`` hears of each call's duration."""
        self._url = url
        self._invoke = invoke
        self._time_limit_s = time_limit_s
        self._billed = billed
        self._poll_s = poll_s
        self._waiting: list[_Call] = []
        self._news = asyncio.Event()
        self._next_look = 0.0
        self._sender: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._url

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        await self._ask("mark", guard=guard, ttl_s=ttl_s)

    async def check(self, guard: str) -> None:
        await self._ask("check", guard=guard)

    async def first(
        self,
        key: str,
        value: bytes,
        *,
        guard: str,
        ttl_s: float,
        stream: str = "",
        fields: Mapping[str, bytes] | None = None,
    ) -> bytes:
        stands = await self._ask(
            "first",
            key=key,
            value=value,
            guard=guard,
            ttl_s=ttl_s,
            stream=stream,
            fields=None if fields is None else dict(fields),
        )
        return bytes(stands)

    async def announce(
        self, stream: str, fields: Mapping[str, bytes], *, guard: str, ttl_s: float = 7200.0
    ) -> None:
        await self._ask("announce", stream=stream, fields=dict(fields), guard=guard, ttl_s=ttl_s)

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        wanted = {"after": dict(after), "wait_s": 0.0, "limit": limit}
        while True:
            found: list[Notice] = await self._ask("read", is_patient=wait_s > 0, **wanted)
            if found or loop.time() >= end:
                return found

    async def renew(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._ask("renew", key=key, value=value, ttl_s=ttl_s)

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = await self._ask("values", keys=list(keys))
        return found

    async def discard(self, keys: Sequence[str]) -> None:
        await self._ask("discard", keys=list(keys))

    async def sweep(self, prefix: str) -> None:
        await self._ask("sweep", prefix=prefix)

    async def close(self) -> None:
        """End the call that is under way. Idempotent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
            self._sender = None

    async def _ask(self, operation: str, *, is_patient: bool = False, **arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        call = _Call((operation, arguments), is_patient, loop.create_future())
        self._waiting.append(call)
        self._news.set()
        if self._sender is None:
            self._sender = loop.create_task(self._send())
        return await call.answer

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._until_due()
            calls = [call for call in self._waiting if not call.answer.done()]
            self._waiting.clear()
            if any(call.is_patient for call in calls):
                self._next_look = loop.time() + self._poll_s
            if calls:
                await self._exchange(calls)

    async def _until_due(self) -> None:
        """Wait until something has been asked that cannot wait, or the next look is due."""
        loop = asyncio.get_running_loop()
        while all(call.is_patient for call in self._waiting):
            left_s = self._next_look - loop.time() if self._waiting else None
            if left_s is not None and left_s <= 0:
                return
            self._news.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                return

    async def _exchange(self, calls: Sequence[_Call]) -> None:
        try:
            results = await self._insist([call.call for call in calls])
        except SmltError as exc:
            results = [exc] * len(calls)
        for call, result in zip(calls, results, strict=True):
            if call.answer.done():  # nobody waits for it any more
                continue
            if isinstance(result, SmltError):
                call.answer.set_exception(result)
            else:
                call.answer.set_result(result)

    async def _insist(self, calls: Sequence[gateway.Call]) -> list[Any]:
        """Call until there is an answer: what was done twice is done (see ControlStore)."""
        loop, pause_s = asyncio.get_running_loop(), _FIRST_PAUSE_S
        event = gateway.question(self._url, self._time_limit_s, calls)
        give_up = loop.time() + self._time_limit_s
        while True:
            try:
                answer = await self._invoke(event, self._time_limit_s + _COLD_S)
                self._billed(answer.billed_ms)
                return gateway.read_answer(answer.payload)
            except CloudError as exc:
                if loop.time() + pause_s > give_up:
                    raise StoreUnreachableError(
                        f"the parameter store is not reached through the gateway: {exc}"
                    ) from exc
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
