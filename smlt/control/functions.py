"""The functions that run a job's workers: one for each size of memory that a plan asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """The published version that a generation's workers run."""

    name: str
    version: str
    memory_mb: int


class Functions:
    """Makes a function when a plan first asks for its size, and keeps it for later generations."""

    def __init__(self, make: Callable[[int], Awaitable[Function]]) -> None:
        self._make = make
        self._made: dict[int, Function] = {}
        self._making = asyncio.Lock()

    async def of(self, memory_mb: int) -> Function:
        """Return the function with so much memory.

        Raises:
            CloudError: it could not be made.
        """
        async with self._making:
            if memory_mb not in self._made:
                self._made[memory_mb] = await self._make(memory_mb)
        return self._made[memory_mb]
