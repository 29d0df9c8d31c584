"""An object store that takes its time, fails when it is told to, and looks at what it is given."""

from __future__ import annotations

import asyncio
import contextlib
import json

from smlt.errors import PreconditionError, StoreUnreachableError
from smlt.io.memory_objects import MemoryObjectStore
from tests.simulation.loop import PROCESS

PATIENCE_S = 6.0


class SimulatedObjects(MemoryObjectStore):
    """One process's client. What a process that is dead still sends does not arrive."""

    def __init__(self, world) -> None:
        super().__init__(world.name)
        self._world = world

    async def _travel(self) -> None:
        process, world = PROCESS.get(), self._world
        if process.dead:
            raise asyncio.CancelledError
        await asyncio.sleep(world.rng.uniform(0.001, 0.02) + world.blocked_s(process))
        if process.dead:
            raise asyncio.CancelledError
        # As the client of S3 does: it insists for a while.
        give_up = world.loop.now + PATIENCE_S
        while world.loop.now < world.objects_down_until:
            await asyncio.sleep(world.rng.uniform(0.1, 0.4))
            if world.loop.now > give_up:
                raise StoreUnreachableError("the object store answers 503 Slow Down")
        if process.dead:
            raise asyncio.CancelledError

    async def get(self, key):
        await self._travel()
        return await super().get(key)

    async def get_range(self, key, start, length):
        await self._travel()
        return await super().get_range(key, start, length)

    async def head(self, key):
        await self._travel()
        return await super().head(key)

    async def put(self, key, data, **conditions):
        try:
            await self._travel()
        except StoreUnreachableError:
            if self._world.rng.random() < 0.5:
                with contextlib.suppress(PreconditionError):  # written, though no answer came
                    await self._write(key, data, **conditions)
            raise
        etag = await self._write(key, data, **conditions)
        if self._world.loop.now < self._world.objects_down_until and self._world.rng.random() < 0.5:
            raise StoreUnreachableError("the connection was lost before the answer had come")
        await asyncio.sleep(self._world.rng.uniform(0.001, 0.01))
        return etag

    async def _write(self, key, data, **conditions):
        # A memory view may change until the answer has come: real clients read it on the way.
        etag = await super().put(key, data, **conditions)
        self._world.witness.stored(PROCESS.get(), key)
        self._world.troubles.written(key)
        return etag

    async def list(self, prefix):
        await self._travel()
        async for info in super().list(prefix):
            yield info

    async def delete(self, key):
        await self._travel()
        await super().delete(key)

    def document(self, key):
        return json.loads(self._contents.objects[key])

    def keys(self, prefix=""):
        return sorted(key for key in self._contents.objects if key.startswith(prefix))

    def content(self, key):
        return self._contents.objects[key]

    def replace(self, key, data) -> None:
        """Damage an object, or remove it where ``data`` is None."""
        if data is None:
            del self._contents.objects[key]
        else:
            self._contents.objects[key] = data
