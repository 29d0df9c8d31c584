"""The asyncio side of an aggregator: what it does, on whatever event loop it is used."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation import options
from smlt.aggregation.arrays import in_words, is_wide, item, items, stacked
from smlt.aggregation.averaging import Averaging
from smlt.aggregation.group import Group, Operation
from smlt.aggregation.session import Session
from smlt.aggregation.session_settings import SessionLimits, SessionSpec
from smlt.aggregation.wire import check_dtype
from smlt.config.sharding import AUTO, is_open, sharding
from smlt.errors import ConfigError, UserError
from smlt.io.stores import open_parameter_store

_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}")


def open_session(
    url: str, job: str, rank: int, spec: SessionSpec, limits: SessionLimits
) -> Session:
    """Return the session of a job through the parameter store of a URL; it is not yet joined.

    Raises:
        ConfigError: a value that cannot be.
    """
    if not _JOB_NAME.fullmatch(job):
        raise ConfigError(
            f"{job!r} is no job name: use up to 200 letters, digits and . _ / : - after the first"
        )
    if not 0 <= rank < spec.world_size:
        raise ConfigError(f"rank {rank} is outside a world of {spec.world_size}: they begin at 0")
    store = open_parameter_store(url, time_limit_s=limits.store_s)
    return Session(store, job, rank, spec, limits)


class AsyncAggregator:
    """The asyncio twin of ``Aggregator``: an async context manager with the same methods."""

    def __init__(
        self,
        url: str,
        *,
        job: str,
        rank: int,
        world_size: int,
        time_limit_s: float = 120.0,
        shard_mb: float | None = None,
        aggregators: int | None = None,
        wire_dtype: str = "fp32",
        lease_s: float | None = None,
    ) -> None:
        url, job = options.text("url", url), options.text("job", job)
        rank, world_size = options.whole("rank", rank), options.whole("world_size", world_size)
        if shard_mb is not None:
            shard_mb = options.positive("shard_mb", shard_mb)
        if aggregators is not None:
            aggregators = options.whole("aggregators", aggregators)
        shard_bytes, owners = sharding(url, world_size, shard_mb=shard_mb, aggregators=aggregators)
        spec = SessionSpec(
            world_size=world_size,
            shard_bytes=shard_bytes,
            aggregators=owners,
            tries_plans=is_open(url, shard_mb=shard_mb, aggregators=aggregators),
            wire_dtype=AUTO if wire_dtype == AUTO else check_dtype(wire_dtype),
        )
        limits = SessionLimits.of(
            url,
            options.positive("time_limit_s", time_limit_s),
            None if lease_s is None else options.positive("lease_s", lease_s),
        )
        self.rank = rank
        self.world_size = world_size
        self._session = open_session(url, job, rank, spec, limits)
        self._resources = contextlib.AsyncExitStack()
        self._is_claimed = False
        self._turn = asyncio.Lock()
        self._under_way = 0
        self._at_rest = asyncio.Event()
        self._group: Group | None = None
        self._averaging: Averaging | None = None
        self._owed: dict[str, NDArray[np.float32]] = {}

    @property
    def requests(self) -> Mapping[str, int]:
        """See ``Aggregator.requests``."""
        return dict(self._session.store.requests)

    @property
    def shards(self) -> Mapping[str, str]:
        """See ``Aggregator.shards``."""
        return {} if self._averaging is None else self._averaging.shards

    def claim(self) -> None:
        """Take note of its only use.

        Raises:
            UserError: it has been used.
        """
        if self._is_claimed:
            raise UserError("an aggregator is for one `with` statement: make another one")
        self._is_claimed = True

    async def __aenter__(self) -> Self:
        self.claim()
        return await self.join()

    async def join(self) -> Self:
        """Take this rank's place in the job, for which it is claimed."""
        async with contextlib.AsyncExitStack() as resources:
            await resources.enter_async_context(self._session.store)
            await resources.enter_async_context(self._session)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if exc_info[0] is not None:
            await self._resources.__aexit__(*exc_info)
            return
        async with self._resources:
            # What was begun and not waited for: others wait for it, too.
            while self._under_way:
                self._at_rest.clear()
                await self._at_rest.wait()

    async def allreduce(self, grads: Any, weight: float = 1.0) -> None:
        """See ``Aggregator.allreduce``."""
        counts = options.weight(weight)
        found = items(grads)
        for each in found:
            is_wide(each)
        await self._next(
            lambda _, averaging: averaging.begin(found, counts),
            is_trial=lambda averaging: averaging.is_trial,
        )

    async def reduce_scatter(self, array: Any) -> NDArray[Any]:
        """See ``Aggregator.reduce_scatter``."""
        source = item("array", array)
        flat = np.empty(source.shape, np.float64 if is_wide(source) else np.float32)
        source.read(flat)
        pieces = np.array_split(flat.reshape(-1), self.world_size)
        out = np.empty_like(pieces[self.rank])
        await self._next(lambda group, _: group.reduce_scatter(pieces, out, "avg"))
        return out

    async def all_gather(self, array: Any) -> Any:
        """See ``Aggregator.all_gather``."""
        source = item("array", array)
        room, rows = stacked(source, self.world_size)
        what = f"all_gather of {in_words([source])}"
        await self._next(lambda group, _: group.all_gather(source.raw(), rows, what=what))
        return room

    async def broadcast(self, arrays: Any, root: int = 0) -> None:
        """See ``Aggregator.broadcast``."""
        root = options.member("root", root, self.world_size)
        found = items(arrays, "arrays")
        parts = [each.raw() for each in found]
        data = np.concatenate([np.empty(0, np.uint8), *parts])
        what = f"broadcast from {root} of {in_words(found)}"
        await self._next(lambda group, _: group.broadcast(data, root, what=what))
        if self.rank == root:
            return
        start = 0
        for each, part in zip(found, parts, strict=True):
            each.set_raw(data[start : start + part.size])
            start += part.size

    async def barrier(self) -> None:
        """Return when every rank has called it."""
        await self._next(lambda group, _: group.barrier())

    async def state_dict(self) -> dict[str, NDArray[np.float32]]:
        """See ``Aggregator.state_dict``."""
        return self._owed if self._averaging is None else self._averaging.owed()

    async def load_state_dict(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """See ``Aggregator.load_state_dict``."""
        self._owed = dict(state)
        if self._averaging is not None:
            self._averaging.owe(self._owed)

    async def _next(
        self,
        begin: Callable[[Group, Averaging], Operation],
        is_trial: Callable[[Averaging], bool] = lambda _: False,
    ) -> None:
        """Run the next operation; they begin in the order of the calls, and then overlap."""
        self._under_way += 1
        try:
            async with self._turn:
                group, averaging = await self._formed()
                operation = begin(group, averaging)
                if is_trial(averaging):
                    # How the next one is done depends on how long this one takes.
                    await operation()
                    return
            await operation()
        finally:
            self._under_way -= 1
            self._at_rest.set()

    async def _formed(self) -> tuple[Group, Averaging]:
        if self._group is None or self._averaging is None:
            await self._session.formed()
            group = Group(self._session)
            self._group = await self._resources.enter_async_context(group)
            self._averaging = Averaging(group)
            self._averaging.owe(self._owed)
        return self._group, self._averaging
