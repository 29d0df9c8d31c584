"""How processes that know only a store, a job's name and their rank find one another.

The sessions of a job are numbered. A session is founded by a first write that holds its settings
and a random generation number, and is over when another first write says so. Both stand for ever
once written, so a process that slept through the end of its session can neither change the next
one nor keep it from beginning: all its keys carry a generation that nobody reads any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgpack

from smlt import errors
from smlt.aggregation.session_settings import SESSION_S, SessionLimits, SessionSpec
from smlt.aggregation.standing import Seat, Sign, Standing
from smlt.errors import AbortedError, ConfigError, RankMissingError, SmltError, StoreLostError
from smlt.io.keys import GenerationKeys, SessionKeys
from smlt.io.parameter_store import ParameterStore, written_by_us

# What is over need only be remembered for as long as a slow joiner may believe otherwise.
_MEMORY_S = 3600.0
_POLL_S = 0.1


class Rendezvous:
    """One process's search for its seat. ``find_seat`` may be called again after a bad end."""

    def __init__(
        self,
        store: ParameterStore,
        job: str,
        spec: SessionSpec,
        limits: SessionLimits,
        sign: Sign,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """Store what to look for; ``draw`` returns so many random bits, by which none meet."""
        self.keys = SessionKeys(job)
        self._store = store
        self._job = job
        self._spec = spec
        self._limits = limits
        self._sign = sign
        self._clock = clock
        self._draw = draw
        self._beats: dict[str, int] = {}
        self._empty: dict[int, float] = {}
        """By session, when this process first saw that nobody had come to it."""

    async def find_seat(self) -> Seat:
        """Return this rank's seat in the job's present session, founding it if need be.

        Raises:
            ConfigError: another living process has the rank, or the session other settings.
            RankMissingError: a former run does not come to its end within the time limit.
            StoreError: the parameter store is not there.
        """
        await self._store.mark(self.keys.marker, ttl_s=SESSION_S)
        [hint] = await self._store.values([self.keys.newest])
        with written_by_us("a session number"):
            session = int(hint or 1)
        give_up = self._clock() + self._limits.step_s + self._limits.lease_s
        while True:
            seat, over = await self._try(session)
            if seat is not None:
                return seat
            if over:
                session += 1
            elif self._clock() > give_up:
                raise RankMissingError(
                    f"the former run of job {self._job!r} has ranks at work that do not end within"
                    f" {self._limits.step_s:g} s: end them, or give this run another name"
                )
            else:
                await asyncio.sleep(_POLL_S)

    async def _try(self, session: int) -> tuple[Seat | None, bool]:
        """Take the seat if it is to be had; else say whether the session is over."""
        found = await self._found(session)
        if await self.ending(session) is not None:
            return None, True
        if found is None:
            await self._record_end(session, AbortedError("its settings were damaged on their way"))
            return None, True
        generation, spec = found
        keys = GenerationKeys(self.keys.job_id, generation)
        standing = await self.standing(keys, spec.world_size)
        if standing.verdict:
            await self.end(session, keys, AbortedError(f"{standing.verdict}, and a new run began"))
            return None, True
        holder = standing.live.get(self._sign.rank)
        if holder is not None and self._beats_on(*holder):
            raise ConfigError(
                f"rank {self._sign.rank} of job {self._job!r} is taken by {holder[1].where}, which"
                " is alive: give each process a rank of its own, or this run another name"
            )
        if spec != self._spec:
            alive = [sign for nonce, sign in standing.live.values() if self._beats_on(nonce, sign)]
            if alive:
                raise self._disagreement(spec, alive[0])
        elif not standing.formed and self._sign.rank not in standing.holders:
            seat = await self._claim(session, keys)
            if seat is not None:
                return seat, False
        if standing.holders or not self._is_deserted(session):
            return None, False
        await self.end(session, keys, AbortedError("nobody could take a seat in it"))
        return None, True

    async def _found(self, session: int) -> tuple[int, SessionSpec] | None:
        """Return generation and settings of the session, ours if nobody came before.

        None where no rank has written what stands there, though it was read twice.
        """
        [stands] = await self._store.values([self.keys.founding(session)])
        if stands is None:
            # 62 bits: numbers may begin anew once a job is forgotten, generations never meet.
            generation = self._draw(62)
            marker = GenerationKeys(self.keys.job_id, generation).marker
            await self._store.mark(marker, ttl_s=SESSION_S)
            ours = msgpack.packb({"generation": generation, "spec": asdict(self._spec)})
            stands = await self._store.first(
                self.keys.founding(session), ours, guard=self.keys.marker, ttl_s=SESSION_S
            )
            if stands == ours:
                await self._store.renew(self.keys.newest, b"%d" % session, ttl_s=SESSION_S)
                await self._clear(session - 1)
            else:
                await self._store.discard([marker])
        found = _founding(stands)
        if found is None:
            [stands] = await self._store.values([self.keys.founding(session)])
            found = _founding(stands or b"")
        return found

    async def _claim(self, session: int, keys: GenerationKeys) -> Seat | None:
        # The lease comes first, under a name of its own: a claim without one would look dead.
        nonce = f"{self._draw(64):016x}"
        lease = self.keys.lease(keys.generation, nonce)
        await self._store.renew(lease, self._sign.pack(), ttl_s=self._limits.lease_s)
        try:
            stands = await self._store.first(
                keys.claim(self._sign.rank),
                nonce.encode(),
                guard=keys.marker,
                ttl_s=SESSION_S,
                stream=keys.control,
                fields={"event": b"claimed", "rank": b"%d" % self._sign.rank},
            )
        except StoreLostError:
            stands = b""  # the session has been swept meanwhile; its end is on record
        if stands == nonce.encode():
            return Seat(session, keys, nonce)
        await self._store.discard([lease])
        return None

    async def standing(self, keys: GenerationKeys, world_size: int) -> Standing:
        """Return who is there."""
        formed, *claims = await self._store.values(
            [keys.roster, *(keys.claim(rank) for rank in range(world_size))]
        )
        # A damaged claim is a dead one: it has no lease.
        nonces = {
            rank: c.decode(errors="replace") for rank, c in enumerate(claims) if c is not None
        }
        leases = [self.keys.lease(keys.generation, nonce) for nonce in nonces.values()]
        signs = await self._store.values(leases) if leases else []
        standing = Standing(formed is not None)
        for (rank, nonce), sign in zip(nonces.items(), signs, strict=True):
            standing.holders[rank] = nonce, None if sign is None else Sign.unpack(sign)
        return standing

    async def ending(self, session: int) -> SmltError | None:
        """Return why the session is over, or None while it is not."""
        [packed] = await self._store.values([self.keys.end(session)])
        return None if packed is None else unpack_error(packed)

    async def end(self, session: int, keys: GenerationKeys, error: SmltError) -> SmltError:
        """End the session for everybody; return the reason that stands, ours or an earlier."""
        stands = await self._record_end(session, error)
        with contextlib.suppress(StoreLostError):  # swept: nobody is there to be told
            await self._store.announce(
                keys.control, {"event": b"end", "error": stands}, guard=keys.marker
            )
        return unpack_error(stands)

    async def _record_end(self, session: int, error: SmltError) -> bytes:
        return await self._store.first(
            self.keys.end(session), pack_error(error), guard=self.keys.marker, ttl_s=SESSION_S
        )

    async def forget(self, session: int, keys: GenerationKeys) -> None:
        """Remove what a session that is over has left behind."""
        await self._store.sweep(keys.prefix)
        entries = [self.keys.founding(session), self.keys.end(session)]
        for key, value in zip(entries, await self._store.values(entries), strict=True):
            if value is not None:
                await self._store.renew(key, value, ttl_s=_MEMORY_S)

    async def _clear(self, session: int) -> None:
        [founding] = await self._store.values([self.keys.founding(session)])
        found = None if founding is None else _founding(founding)
        if found is not None:
            await self.forget(session, GenerationKeys(self.keys.job_id, found[0]))

    def _is_deserted(self, session: int) -> bool:
        """Whether nobody has come to a session for so long that nobody will.

        Its founder is dead, and has left other settings, or a record that was damaged.
        """
        return self._clock() - self._empty.setdefault(session, self._clock()) > self._limits.lease_s

    def _beats_on(self, nonce: str, sign: Sign) -> bool:
        """Whether a process has been heard of since this one first looked: a lease outlives it."""
        return self._beats.setdefault(nonce, sign.beat) != sign.beat

    def _disagreement(self, theirs: SessionSpec, sign: Sign) -> ConfigError:
        ours = asdict(self._spec)
        name, value = next((n, v) for n, v in asdict(theirs).items() if ours[n] != v)
        if name == "tries_plans":
            return ConfigError(
                f"job {self._job!r} runs {_sizes_given(tries=value)} (rank {sign.rank},"
                f" {sign.where}), but rank {self._sign.rank} {_sizes_given(tries=ours[name])}: give"
                " them to all ranks or to none, or this run another name"
            )
        return ConfigError(
            f"job {self._job!r} runs with {name}={value} (rank {sign.rank}, {sign.where}), but rank"
            f" {self._sign.rank} says {name}={ours[name]}: give all ranks the same, or this run"
            " another name"
        )


def _sizes_given(*, tries: bool) -> str:
    return "without shard_mb or aggregators" if tries else "with shard_mb or aggregators"


def _founding(data: bytes) -> tuple[int, SessionSpec] | None:
    """Read a session's first record; None: no rank has written that."""
    try:
        record: dict[str, Any] = msgpack.unpackb(data)
        generation, spec = int(record["generation"]), dict(record["spec"])
    except (KeyError, TypeError, ValueError):
        return None
    try:
        return generation, SessionSpec(**spec)
    except TypeError as exc:
        raise ConfigError(
            f"the job was begun by another version of smlt ({exc}): use one version on all ranks"
        ) from exc


def pack_error(error: SmltError) -> bytes:
    return bytes(msgpack.packb([type(error).__name__, str(error)]))


def unpack_error(data: bytes) -> SmltError:
    """Return an error of the same class as the one that was packed, on whatever rank."""
    try:
        name, text = map(str, msgpack.unpackb(data))
    except (TypeError, ValueError):
        return AbortedError("the session was ended, and why is not known: the record was damaged")
    kind = getattr(errors, name, AbortedError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, SmltError) else SmltError(text)
