"""The signs of life of a rank in a drop-in session, and its look at the others'."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from smlt.aggregation.rendezvous import Rendezvous
from smlt.aggregation.session_settings import SessionLimits
from smlt.aggregation.standing import Seat, Sign
from smlt.errors import RankMissingError, StoreFullError, StoreLostError, UserError
from smlt.io.parameter_store import ControlStore

# Every so many heartbeats the leases of the others are read: half a lease at the usual ratio.
_BEATS_PER_ROLL_CALL = 5


class Heartbeat:
    """Renews this rank's lease; finds out that the session is over, or a rank dead."""

    def __init__(
        self,
        store: ControlStore,
        job: str,
        rendezvous: Rendezvous,
        sign: Sign,
        world_size: int,
        limits: SessionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._job = job
        self._rendezvous = rendezvous
        self._sign = sign
        self._world_size = world_size
        self._limits = limits
        self._clock = clock
        self._silent: set[int] = set()

    async def run(
        self,
        seat: Callable[[], Seat],
        is_formed: Callable[[], bool],
        waits_for: Callable[[], str],
    ) -> None:
        """Beat until cancelled.

        Args:
            seat: the one to renew, which changes while the session forms.
            is_formed: whether all ranks have come.
            waits_for: what this rank waits for of others, in words; empty where it does not.

        Raises:
            RankMissingError: a rank that is waited for is dead.
            UserError: it is at another operation.
            SmltError: what has ended the session.
        """
        renewed = self._clock()
        while True:
            now, sign = seat(), self._sign
            sign.beat += 1
            lease = self._rendezvous.keys.lease(now.keys.generation, now.nonce)
            try:
                await self._store.renew(lease, sign.pack(), ttl_s=self._limits.lease_s)
                renewed = self._clock()
            except StoreFullError:
                # Whoever has filled the store makes room soon, and the lease holds until then.
                if self._clock() - renewed > self._limits.lease_s:
                    raise
            if is_formed():
                await self._look(now)
                if sign.beat % _BEATS_PER_ROLL_CALL == 0 and (awaited := waits_for()):
                    await self._call_roll(now, awaited)
            await asyncio.sleep(self._limits.heartbeat_s)

    async def _look(self, seat: Seat) -> None:
        """Find out what the control stream may not have told: it is lost with the store."""
        [marker] = await self._store.values([seat.keys.marker])
        error = await self._rendezvous.ending(seat.session)
        if error is None and marker is None:
            error = StoreLostError(
                f"the parameter store has lost job {self._job!r}: it was restarted or emptied; "
                "start all ranks again"
            )
        if error is not None:
            raise error

    async def _call_roll(self, seat: Seat, awaited: str) -> None:
        """Do not wait until the time limit for the dead, nor for whoever does something else."""
        standing = await self._rendezvous.standing(seat.keys, self._world_size)
        if odds := standing.odds(self._sign):
            raise UserError(odds)
        # Twice silent: the store may have been.
        dead = sorted(self._silent.intersection(standing.dead))
        self._silent = set(standing.dead)
        if dead:
            raise RankMissingError(
                f"rank {dead[0]} of job {self._job!r} died: nothing has been heard of it for more"
                f" than {self._limits.lease_s:g} s, and step {self._sign.operation} waits for"
                f" {awaited}"
            )
