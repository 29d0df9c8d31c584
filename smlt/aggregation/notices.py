"""Follow a generation's streams, and wake whoever waits for what they announce.

One reader for each rank blocks on three streams at once (its contributions, the means, the
control stream), remembers the last id of each, and so loses nothing over a reconnect. A notice
may come twice: the second one changes nothing. That of a small shard carries its frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from smlt.errors import FrameError, RankMissingError, SmltError
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import CARRIED, Notice, ParameterStore

# A blocked read returns at least this often, so that closing never waits long.
_READ_S = 1.0
# One field for all: readers pay for each.
_ARRIVAL = "arrival"


class Arrival(NamedTuple):
    """A shard that a rank has put: its contribution, or as the shard's owner the mean."""

    step: int
    shard: int
    rank: int
    is_mean: bool = False

    @property
    def fields(self) -> dict[str, bytes]:
        return {_ARRIVAL: b"%d %d %d %d" % self}

    @classmethod
    def parse(cls, fields: Mapping[str, bytes]) -> Arrival:
        """Read a notice's fields.

        Raises:
            FrameError: they are not those of a shard.
        """
        try:
            step, shard, rank, is_mean = map(int, fields[_ARRIVAL].split())
        except (KeyError, ValueError) as exc:
            raise FrameError(f"a notice announces no shard: {dict(fields)!r:.200}") from exc
        return cls(step, shard, rank, bool(is_mean))

    def __str__(self) -> str:
        if self.is_mean:
            return f"the mean of shard {self.shard} by rank {self.rank}"
        return f"shard {self.shard} of rank {self.rank}"


class _Seen(NamedTuple):
    """A notice of a shard, and where it lies: behind which id of which stream."""

    frame: bytes | None
    stream: str
    before: str


class _Waiter(NamedTuple):
    """Somebody who waits for a shard, since when, and how long a silence he bears."""

    woken: asyncio.Future[None]
    since: float
    limit_s: float

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


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
        self._contributions, self._means = keys.contributions(rank), keys.means
        self._control = keys.control
        self._after = dict.fromkeys((self._contributions, self._means, self._control), "0-0")
        self._on_control = on_control
        self._arrived: dict[Arrival, _Seen] = {}
        self._waiters: dict[Arrival, _Waiter] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._failure: SmltError | None = None
        self._scopes: list[asyncio.Timeout] = []
        self._heard = 0.0

    async def run(self) -> None:
        """Read until cancelled; a store that fails fails every wait."""
        self._store.on_demand([self._contributions, self._means])
        try:
            while True:
                for notice in await self._store.read(self._after, wait_s=_READ_S):
                    before = self._after[notice.stream]
                    self._after[notice.stream] = notice.id
                    self._dispatch(notice, before)
        except SmltError as error:
            self.fail(error)

    def fail(self, error: SmltError) -> None:
        """Make every present and future wait raise this error; the first one stands."""
        self._failure = self._failure or error
        for scope in self._scopes:
            scope.reschedule(0.0)
        for waiter in self._waiters.values():
            waiter.wake()

    @property
    def failure(self) -> SmltError | None:
        """What every wait raises, if there has been a failure."""
        return self._failure

    def check(self) -> None:
        """Raise the failure, if there has been one."""
        if self._failure is not None:
            raise self._failure

    @asynccontextmanager
    async def unless_failed(self) -> AsyncIterator[None]:
        """End what is done inside at once when there is a failure, and raise that."""
        self.check()
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.append(scope)
                try:
                    yield
                finally:
                    self._scopes.remove(scope)
        except TimeoutError:
            self.check()
            raise

    @property
    def waiting_for(self) -> str:
        """What has been waited for the longest, in words; empty when nothing is."""
        return str(next(iter(self._waiters), ""))

    async def wait(self, arrival: Arrival, limit_s: float) -> bytes | None:
        """Return once the shard has been announced: the frame, if the notice carried it.

        The limit is on silence: as long as other shards arrive, this one may still be under way.

        Raises:
            RankMissingError: nothing arrived within the limit; names rank, step and shard.
            SmltError: whatever ended the generation meanwhile.
        """
        self.check()
        if arrival in self._arrived:
            return self._arrived[arrival].frame
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), loop.time(), limit_s)
        self._waiters[arrival] = waiter
        self._look_at(waiter.since + limit_s)
        try:
            with self._store.expecting(self._means if arrival.is_mean else self._contributions):
                await waiter.woken
        finally:
            del self._waiters[arrival]
        self.check()
        return self._arrived[arrival].frame

    def _look_at(self, when: float) -> None:
        """Look after the waiters then, or earlier: one timer outlives many waits."""
        if self._watch is not None and self._watch.when() <= when:
            return
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        """Tell those who have waited too long, and come again when the next might have."""
        self._watch = None
        now = asyncio.get_running_loop().time()
        for arrival, waiter in self._waiters.items():
            end = max(waiter.since, self._heard) + waiter.limit_s
            if end > now:
                self._look_at(end)
            elif not waiter.woken.done():
                words = f"{arrival} did not come within {waiter.limit_s:g} s"
                error = RankMissingError(f"{words}, in step {arrival.step}")
                waiter.woken.set_exception(error)

    async def again(self, arrival: Arrival) -> bytes | None:
        """Read once more from the store what a notice carried; None where it is gone."""
        seen = self._arrived[arrival]
        for notice in await self._store.read({seen.stream: seen.before}, wait_s=0):
            if Arrival.parse(notice.fields) == arrival:
                return notice.fields.get(CARRIED)
        return None

    def forget(self, step: int) -> None:
        """Drop what is known of this step and all before it."""
        self._arrived = {a: seen for a, seen in self._arrived.items() if a.step > step}

    def _dispatch(self, notice: Notice, before: str) -> None:
        if notice.stream == self._control:
            self._on_control(notice.fields)
            return
        arrival = Arrival.parse(notice.fields)
        self._arrived[arrival] = _Seen(notice.fields.get(CARRIED), notice.stream, before)
        self._heard = asyncio.get_running_loop().time()
        if arrival in self._waiters:
            self._waiters[arrival].wake()
