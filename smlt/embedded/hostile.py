"""What an unkind Lambda does to events and environments, decided by a seed.

Lambda promises to deliver an event at least once, not only once, and not soon; an event that
has grown too old is dropped all the same; it throttles; it may take an environment away whenever it
likes. Most users never see that until their job is large. Here it happens on purpose, so that a
task can be tried against it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

THROTTLED = 0.15
LOST = 0.1
TWICE = 0.2
LATE = 0.25
KILLED_WHILE_IDLE = 0.2
KILLED_IN_MID_RUN = 0.3
LATEST_S = 4.0
SOONEST_KILL_S, LATEST_KILL_S = 2.0, 15.0

NOTICE = (
    "Chaos (seed {seed}): this Lambda service delivers events twice, late or not at all, refuses "
    "some, and kills execution environments, idle and busy ones."
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What befalls one event."""

    deliveries: tuple[float, ...] = (0.0,)
    """Seconds after which it is delivered, each time; none for an event that is lost."""
    kill_idle: bool = False
    """Before the first delivery an idle environment of the function is taken away."""
    kill_after_s: float | None = None
    """Its environment is killed after so long, if it still runs then."""


class Hostility:
    """Draws the fates of events, in the order in which they come: a seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self.notice = NOTICE.format(seed=seed)
        self._rng = random.Random(seed)

    def throttles(self) -> bool:
        """Whether the next event is refused."""
        return self._rng.random() < THROTTLED

    def fate(self) -> Fate:
        """Return what befalls the next event that was accepted."""
        rng = self._rng
        # As many draws whatever comes of them, so that one event's fate does not shift another's.
        lost, late, twice, idle, busy = (rng.random() for _ in range(5))
        delay, again, kill = (
            rng.uniform(0.2, LATEST_S),
            rng.uniform(0.0, LATEST_S),
            rng.uniform(SOONEST_KILL_S, LATEST_KILL_S),
        )
        first = delay if late < LATE else 0.0
        deliveries: tuple[float, ...] = (first, first + again) if twice < TWICE else (first,)
        if lost < LOST:
            deliveries = ()
        return Fate(
            deliveries=deliveries,
            kill_idle=idle < KILLED_WHILE_IDLE,
            kill_after_s=kill if busy < KILLED_IN_MID_RUN else None,
        )
