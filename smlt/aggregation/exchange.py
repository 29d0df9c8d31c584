"""Bytes from rank to rank through the parameter store: everything that is not an average.

A parcel is a frame of bytes under a key of its own, announced to one rank or to all. Each reader
says when it has fetched it; the writer frees it after the last one has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core import codec
from smlt.aggregation.outbox import OUTSTANDING, Outbox
from smlt.aggregation.transfer import Offload, where_it_pays
from smlt.errors import FrameError, RankMissingError, SmltError, StoreFullError, UserError
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import Notice, ParameterStore, written_by_us
from smlt.io.resp_threads import LARGE_BYTES

Bytes = NDArray[np.uint8]

_READ_S = 1.0
# Readers lag by what all ranks have outstanding, and what they say of it.
_STREAM_LENGTH = 4 * OUTSTANDING
_TRANSFERS = 4
# What an operation is, in words.
_MAX_WHAT_BYTES = 1 << 10


class Exchange:
    """One rank's parcels in a group of ranks. ``run`` it as a task beside its use."""

    def __init__(
        self,
        store: ParameterStore,
        keys: GenerationKeys,
        rank: int,
        world_size: int,
        *,
        ttl_s: float,
        limit_s: float,
        offload: Offload,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._keys = keys
        self._ttl_s = ttl_s
        self._limit_s = limit_s
        self._offload = offload
        self._after = {keys.inbox(rank): "0-0", keys.board: "0-0"}
        self._arrived: dict[str, None] = {}
        self._waiters: dict[str, asyncio.Future[str]] = {}
        self._outbox = Outbox()
        self._roots: dict[str, int] = {}
        self._transfers = asyncio.Semaphore(_TRANSFERS)
        self._errands: set[asyncio.Task[None]] = set()
        self._failure: SmltError | None = None

    async def run(self) -> None:
        """Read announcements until cancelled; a store that fails fails every wait."""
        self._store.on_demand(self._after)
        try:
            while True:
                for notice in await self._store.read(self._after, wait_s=_READ_S):
                    self._after[notice.stream] = notice.id
                    with written_by_us("a notice"):
                        self._dispatch(notice)
        except SmltError as error:
            self.fail(error)

    def fail(self, error: SmltError) -> None:
        """Make every present and future wait raise this error; the first one stands."""
        self._failure = self._failure or error
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(self._failure)
                waiter.exception()  # whoever waited may be gone: no cause of a warning
        self._outbox.fail(self._failure)

    async def close(self) -> None:
        """Have what is under way in the background end: others may wait to hear of it."""
        if self._errands and self._failure is None:
            await asyncio.wait(self._errands, timeout=self._limit_s)
        for errand in self._errands:
            errand.cancel()
        await asyncio.gather(*self._errands, return_exceptions=True)
        self._errands.clear()

    def agree_on_root(self, label: str, root: int) -> None:
        """Take a rank for the only one that posts under a label, by this rank's word or another's.

        Raises:
            UserError: another was named before. Two roots wait for nothing from each other.
        """
        known = self._roots.setdefault(label, root)
        if known != root:
            raise UserError(
                f"ranks do different things: one broadcast comes from rank {known} and from rank"
                f" {root}; all have to name the same root"
            )
        if len(self._roots) > OUTSTANDING:
            del self._roots[next(iter(self._roots))]

    async def post(
        self,
        label: str,
        data: Bytes,
        *,
        to: int | None,
        what: str,
        bounded: bool = True,
        is_root: bool = False,
    ) -> asyncio.Future[None]:
        """Put a parcel for one rank, or for all; the future says that it has been fetched.

        ``what`` is the operation in words: readers compare it with their own. A bounded post waits
        while too much of this rank's has not been fetched. Others learn that this rank ``is_root``.
        """
        key = self._keys.parcel(label, self.rank)
        if bounded:
            await self._wait_for_room()
        readers = set(range(self.world_size)) - {self.rank} if to is None else {to}
        stream = self._keys.board if to is None else self._keys.inbox(to)
        fetched = self._outbox.add(key, data.nbytes, readers)
        if fetched.done():
            return fetched
        async with self._transfers:
            encode = partial(codec.encode, data, meta=what.encode())
            pieces = await where_it_pays(self._offload, data.nbytes, encode)
            fields = {"parcel": key.encode(), "rank": b"%d" % self.rank}
            if is_root:
                fields["root"] = label.encode()
            await self._put(key, pieces, stream, fields)
        return fetched

    async def send(self, label: str, data: Bytes, to: int) -> None:
        """Put a parcel for one rank, and return when it has fetched it.

        Raises:
            RankMissingError: it has not within the time limit.
        """
        fetched = await self.post(label, data, to=to, what="send", bounded=False)
        try:
            with self.expecting():
                async with asyncio.timeout(self._limit_s):
                    await fetched
        except TimeoutError:
            raise RankMissingError(
                f"rank {to} has not received what was sent to it within {self._limit_s:g} s"
            ) from None

    async def fetch(self, labels: Sequence[tuple[str, int]], out: Bytes, *, what: str) -> int:
        """Bring the first of these parcels, (label, source) each, into ``out``.

        Returns:
            The index of the parcel that came.

        Raises:
            RankMissingError: none was announced within the time limit.
            UserError: the source was at another operation, or with another size.
        """
        keys = [self._keys.parcel(label, source) for label, source in labels]
        key = await self._announced(keys, labels, what)
        index = keys.index(key)
        source = labels[index][1]
        async with self._transfers:
            data = await self._store.get(key, into=_room(out.nbytes))
            if data is None:
                raise StoreFullError(
                    f"{key} was announced and is gone: the parameter store evicts or expires keys"
                    " (it needs maxmemory-policy noeviction)"
                )
            decode = partial(_decode, data, out, what, source)
            await where_it_pays(self._offload, data.nbytes, decode)
        self._errand(self._say_fetched(key, source))
        return index

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Tell the store that parcels, or what others have fetched, are waited for."""
        with contextlib.ExitStack() as streams:
            for stream in self._after:
                streams.enter_context(self._store.expecting(stream))
            yield

    async def _say_fetched(self, key: str, source: int) -> None:
        fields = {"fetched": key.encode(), "rank": b"%d" % self.rank}
        await self._put(self._keys.fetched(self.rank), [b""], self._keys.inbox(source), fields)

    async def _put(
        self, key: str, pieces: Sequence[Any], stream: str, fields: dict[str, bytes]
    ) -> None:
        await self._store.put(
            key,
            pieces,
            stream=stream,
            fields=fields,
            guard=self._keys.marker,
            ttl_s=self._ttl_s,
            maxlen=_STREAM_LENGTH * self.world_size,
        )

    async def _wait_for_room(self) -> None:
        try:
            with self.expecting():
                async with asyncio.timeout(self._limit_s):
                    await self._outbox.has_room()
        except TimeoutError:
            key, slowest = self._outbox.oldest
            raise RankMissingError(
                f"rank {slowest} has not fetched {key} within {self._limit_s:g} s"
            ) from None

    async def _announced(
        self, keys: Sequence[str], labels: Sequence[tuple[str, int]], what: str
    ) -> str:
        """Return the first of the keys to be announced."""
        if self._failure is not None:
            raise self._failure
        for key in keys:
            if key in self._arrived:
                del self._arrived[key]
                return key
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiters.update(dict.fromkeys(keys, waiter))
        try:
            with self.expecting():
                async with asyncio.timeout(self._limit_s):
                    return await waiter
        except TimeoutError:
            ranks = ", ".join(str(source) for _, source in labels)
            raise RankMissingError(
                f"nothing came from rank {ranks} for {what} within {self._limit_s:g} s"
            ) from None
        finally:
            for key in keys:
                self._waiters.pop(key, None)

    def _dispatch(self, notice: Notice) -> None:
        fields = notice.fields
        rank = int(fields["rank"])
        if "fetched" in fields:
            key = fields["fetched"].decode()
            if self._outbox.fetched(key, rank):
                self._errand(self._store.discard([key]))
        if "parcel" not in fields or rank == self.rank:
            return  # the board shows a rank its own parcels, too
        if "root" in fields:
            self.agree_on_root(fields["root"].decode(), rank)
        key = fields["parcel"].decode()
        waiter = self._waiters.pop(key, None)
        if waiter is None or waiter.done():
            self._arrived[key] = None
        else:
            waiter.set_result(key)

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._done(work))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _done(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SmltError as error:
            self.fail(error)


def _decode(data: memoryview, out: Bytes, what: str, source: int) -> None:
    try:
        header = codec.read_header(data)
        theirs = header.meta.decode(errors="replace")
        if theirs != what:
            raise UserError(
                f"ranks do different things: rank {source} is at {theirs}, this one at {what}; all"
                " have to call the same operations, with the same sizes, in the same order"
            )
        codec.decode_into(data, out)
    except codec.FrameFormatError as exc:
        raise FrameError(f"what rank {source} sent for {what} cannot be used: {exc}") from exc


def _room(nbytes: int) -> memoryview | None:
    """Return memory for a large parcel, so that a thread can receive it in place."""
    if nbytes < LARGE_BYTES:
        return None
    return np.empty(codec.frame_bound(nbytes, _MAX_WHAT_BYTES), np.uint8).data
