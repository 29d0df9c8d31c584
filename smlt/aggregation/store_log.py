"""A small key-value store in a stream: every change is a notice, and every rank replays them all.

All ranks see the changes in one order, so that counters and compare-and-set need nothing of the
server but the stream.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

from smlt.aggregation.session_settings import SESSION_S
from smlt.errors import SmltError, StoreError
from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import Notice, ParameterStore, written_by_us

_READ_S = 1.0
# A repeated notice follows its first with few others between.
_REMEMBERED = 10_000


class StoreLog:
    """The replica of one rank. ``run`` it as a task beside its use."""

    def __init__(self, store: ParameterStore, keys: GenerationKeys) -> None:
        self.values: dict[str, bytes] = {}
        self._store = store
        self._marker = keys.marker
        self._after = {keys.reports: "0-0"}
        self._results: dict[bytes, asyncio.Future[bytes]] = {}
        self._replayed: dict[bytes, None] = {}
        self._changed = asyncio.Event()
        self._failure: SmltError | None = None

    async def run(self) -> None:
        """Replay until cancelled; a store that fails fails every wait."""
        self._store.on_demand(self._after)
        try:
            while True:
                for notice in await self._store.read(self._after, wait_s=_READ_S):
                    self._after[notice.stream] = notice.id
                    with written_by_us("a notice"):
                        self._replay(notice)
        except SmltError as error:
            self.fail(error)

    def fail(self, error: SmltError) -> None:
        """Make every present and future call raise this error; the first one stands."""
        self._failure = self._failure or error
        for result in self._results.values():
            if not result.done():
                result.set_exception(self._failure)
        self._changed.set()

    async def change(self, verb: str, key: str, value: bytes = b"", expected: bytes = b"") -> bytes:
        """Make a change and return what came of it, once this rank has replayed it.

        Args:
            verb: ``set`` and ``append`` return the new value, ``add`` the new number in decimal,
                ``compare_set`` what stands then, ``delete`` b"1" if there was something.
            key: the key.
            value: what to set, to append, or the decimal number to add.
            expected: for ``compare_set``; empty for a key that does not exist.
        """
        if self._failure is not None:
            raise self._failure
        nonce = secrets.token_bytes(8)
        result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._results[nonce] = result
        fields = {
            "verb": verb.encode(),
            "key": key.encode(),
            "value": value,
            "expected": expected,
            "nonce": nonce,
        }
        try:
            [stream] = self._after
            await self._store.announce(stream, fields, guard=self._marker, ttl_s=SESSION_S)
            with self._store.expecting(stream):
                return await result
        finally:
            del self._results[nonce]

    async def wait(self, keys: Sequence[str], limit_s: float) -> list[bytes]:
        """Return the values of these keys, once all of them exist.

        Raises:
            TimeoutError: they do not within the limit.
        """
        [stream] = self._after
        with self._store.expecting(stream):
            async with asyncio.timeout(limit_s):
                return await self._wait(keys)

    async def _wait(self, keys: Sequence[str]) -> list[bytes]:
        while True:
            if self._failure is not None:
                raise self._failure
            if all(key in self.values for key in keys):
                return [self.values[key] for key in keys]
            self._changed.clear()
            await self._changed.wait()

    def _replay(self, notice: Notice) -> None:
        fields = notice.fields
        nonce = fields["nonce"]
        if nonce in self._replayed:
            return  # the same notice again: its writer was cut off before it had the answer
        self._replayed[nonce] = None
        if len(self._replayed) > _REMEMBERED:
            del self._replayed[next(iter(self._replayed))]
        value = self._apply(
            fields["verb"], fields["key"].decode(), fields["value"], fields["expected"]
        )
        self._changed.set()
        result = self._results.get(nonce)
        if result is not None and not result.done():
            result.set_result(value)

    def _apply(self, verb: bytes, key: str, value: bytes, expected: bytes) -> bytes:
        stands = self.values.get(key)
        if verb == b"delete":
            self.values.pop(key, None)
            return b"" if stands is None else b"1"
        if verb == b"compare_set" and (stands or b"") != expected:
            return expected if stands is None else stands
        if verb == b"add":
            value = b"%d" % (int(stands or 0) + int(value))
        elif verb == b"append":
            value = (stands or b"") + value
        elif verb not in (b"set", b"compare_set"):
            raise StoreError(f"the store's log has an unknown change {verb!r}")
        self.values[key] = value
        return value
