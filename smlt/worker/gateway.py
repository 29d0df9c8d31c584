"""The function through which a client reaches a parameter store that only functions reach."""

from __future__ import annotations

import asyncio

from smlt.io import gateway
from smlt.io.parameter_store import ParameterStore
from smlt.io.stores import open_parameter_store


class Gateway:
    """Answers calls, with connections that stay open from one call to the next."""

    def __init__(self) -> None:
        # Connections belong to a loop, so all calls share one.
        self._loop: asyncio.Runner | None = None
        self._store: ParameterStore | None = None
        self._opened: tuple[str, float] | None = None

    def answer(self, event: dict[str, str]) -> dict[str, str]:
        """Do what a client asks of the store, and return what came of it."""
        if self._loop is None:
            self._loop = asyncio.Runner()
        return self._loop.run(self._answer(event))

    async def _answer(self, event: dict[str, str]) -> dict[str, str]:
        url, limit_s, calls = gateway.read_question(event)
        if self._store is None or self._opened != (url, limit_s):
            if self._store is not None:
                await self._store.close()
            self._store = open_parameter_store(url, time_limit_s=limit_s)
            self._opened = url, limit_s
        return await gateway.answer(self._store, calls)
