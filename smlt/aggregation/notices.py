"""Follow a generation's streams, and wake whoever waits for what they announce.

One reader for each rank blocks on three streams at once (its contributions, the means, the
control stream), remembers the last id of each, and so loses nothing over a reconnect. A notice
may come twice: arrivals are a set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from smlt.errors import RankMissingError, SmltError
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import Notice, ParameterStore

# A blocked read returns at least this often, so that closing never waits long.
_READ_S = 1.0


class Arrival(NamedTuple):
    """A shard that has been put: a rank's contribution, or (rank None) the mean."""

    step: int
    shard: int
    rank: int | None

    @property
    def fields(self) -> dict[str, bytes]:
        rank = b"" if self.rank is None else b"%d" % self.rank
        return {"step": b"%d" % self.step, "shard": b"%d" % self.shard, "rank": rank}

    @classmethod
    def parse(cls, fields: Mapping[str, bytes]) -> Arrival:
        rank = fields["rank"]
        return cls(int(fields["step"]), int(fields["shard"]), int(rank) if rank else None)


class Notices:
    """The reader of one rank. ``run`` it as a task; after a failure every wait raises it."""

    def __init__(
        self,
        store: ParameterStore,
        keys: GenerationKeys,
        rank: int,
        on_control: Callable[[Mapping[str, bytes]], None],
    ) -> None:
        self._store = store
        self._after = {keys.contributions(rank): "0-0", keys.means: "0-0", keys.control: "0-0"}
        self._control = keys.control
        self._on_control = on_control
        self._arrived: set[Arrival] = set()
        self._waiters: dict[Arrival, asyncio.Future[None]] = {}
        self._failure: SmltError | None = None

    async def run(self) -> None:
        """Read until cancelled; a store that fails fails every wait."""
        try:
            while True:
                for notice in await self._store.read(self._after, wait_s=_READ_S):
                    self._after[notice.stream] = notice.id
                    self._dispatch(notice)
        except SmltError as error:
            self.fail(error)

    def fail(self, error: SmltError) -> None:
        """Make every present and future wait raise this error; the first one stands."""
        self._failure = self._failure or error
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(self._failure)

    @property
    def failure(self) -> SmltError | None:
        """What every wait raises, if there has been a failure."""
        return self._failure

    def check(self) -> None:
        """Raise the failure, if there has been one."""
        if self._failure is not None:
            raise self._failure

    @property
    def waiting_for(self) -> str:
        """What has been waited for the longest, in words; empty when nothing is."""
        for arrival in self._waiters:
            return _in_words(arrival)
        return ""

    async def wait(self, arrival: Arrival, limit_s: float) -> None:
        """Return once the shard has been announced.

        Raises:
            RankMissingError: it was not within the limit; names rank, step and shard.
            SmltError: whatever ended the generation meanwhile.
        """
        self.check()
        if arrival in self._arrived:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[arrival] = waiter
        try:
            async with asyncio.timeout(limit_s):
                await waiter
        except TimeoutError:
            raise RankMissingError(
                f"{_in_words(arrival)} of step {arrival.step} did not come within {limit_s:g} s"
            ) from None
        finally:
            del self._waiters[arrival]

    def forget(self, step: int) -> None:
        """Drop what is known of this step and all before it."""
        self._arrived = {arrival for arrival in self._arrived if arrival.step > step}

    def _dispatch(self, notice: Notice) -> None:
        if notice.stream == self._control:
            self._on_control(notice.fields)
            return
        arrival = Arrival.parse(notice.fields)
        self._arrived.add(arrival)
        waiter = self._waiters.get(arrival)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _in_words(arrival: Arrival) -> str:
    if arrival.rank is None:
        return f"the mean of shard {arrival.shard}"
    return f"shard {arrival.shard} of rank {arrival.rank}"
