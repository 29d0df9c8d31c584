"""What the client has seen of a generation: who claimed, who lives, who left, and why it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import msgpack

from smlt.control.invocations import Invocation
from smlt.messages.worker import SAVING, Failure, RankState, StepFlag


@dataclass(frozen=True, slots=True)
class Claim:
    """Which invocation a rank is."""

    request_id: str
    stream: str
    """Its log stream; empty where there is no log."""


@dataclass(slots=True)
class RankView:
    """One rank of the roster."""

    state: RankState | None = None
    """What its last heartbeat said; None before the first."""
    left: bool = False
    lost: bool = False
    suspected: bool = False
    """Its function has ended, but its notice of leaving may still be on the way."""

    @property
    def gone(self) -> bool:
        return self.left or self.lost

    def leave(self) -> None:
        self.left = True
        if self.state is not None:
            self.state = replace(self.state, state="left", waiting_for="")


class GenerationView:
    """Fed by the control stream and by the supervisor's own findings."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.claims: dict[int, Claim] = {}
        """By rank; what another invocation of it does tells nothing of the rank."""
        self.ranks: dict[int, RankView] = {}
        """The roster; empty until it is fixed."""
        self.retired: set[int] = set()
        """Ranks whose environments are not to serve the job again, and stay until others are."""
        self.failure: Failure | None = None
        """Why the generation was aborted, if it was."""
        self.reasons = StepFlag(0)
        """Why the ranks agreed to stop."""
        self.ending_since: float | None = None
        self._clock = clock
        self._news = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return all(rank.gone for rank in self.ranks.values())

    @property
    def is_saving(self) -> bool:
        """Whether a rank that is still there saves its state."""
        there = (rank.state for rank in self.ranks.values() if not rank.gone)
        return any(state is not None and state.state == SAVING for state in there)

    @property
    def states(self) -> list[RankState]:
        return [rank.state for rank in self.ranks.values() if rank.state is not None]

    def notify(self) -> None:
        """Wake who waits for news."""
        self._news.set()

    async def news_within(self, limit_s: float) -> None:
        """Wait until something has happened, but not longer than the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(limit_s, 0)):
                await self._news.wait()
        self._news.clear()

    def is_rank(self, invocation: Invocation) -> bool:
        """Whether an invocation is the one that has claimed its rank."""
        claim = self.claims.get(invocation.rank)
        if claim is None or claim.request_id != invocation.request_id:
            return False
        return not claim.stream or claim.stream == invocation.stream

    def fix(self, claimed: Iterable[int]) -> None:
        """Take in the roster."""
        self.ranks = {rank: RankView() for rank in claimed}

    def take(self, fields: Mapping[str, bytes]) -> None:
        """Take in a notice of the control stream."""
        event = fields["event"]
        if event == b"claimed":
            claim = Claim(fields["request"].decode(), fields["stream"].decode())
            self.claims[int(fields["rank"])] = claim
        elif event == b"retire":
            self.retired.add(int(fields["rank"]))
        elif event == b"left":
            self.ranks.setdefault(int(fields["rank"]), RankView()).leave()
            self.reasons |= StepFlag(int(fields["reasons"]))
            self._end()
        elif event == b"abort":
            self.abort(Failure.from_dict(msgpack.unpackb(fields["failure"])))

    def abort(self, failure: Failure) -> None:
        """Note why the generation was aborted; the first reason stands."""
        self.failure = self.failure or failure
        self._end()
        self.notify()

    def lose(self, rank: int) -> None:
        """Note that a rank is dead, or as good as dead."""
        self.ranks[rank].lost = True
        self.notify()

    def _end(self) -> None:
        if self.ending_since is None:
            self.ending_since = self._clock()
