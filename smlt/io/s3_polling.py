"""When to look for news in a bucket, where every look has its price."""

from __future__ import annotations

FIRST_PAUSE_S = 0.25
FIRST_PAUSE_ON_DEMAND_S = 0.05
LONGEST_PAUSE_S = 2.0
_SHARE = 0.5
"""Of the time that has been waited: so much later, at the most, news are found."""
_NEVER = float("inf")


class Pace:
    """How often to list one stream, by the event loop's clock.

    The longer nothing comes, the seldomer. A stream that is ``on_demand`` is listed only while
    somebody waits for it.
    """

    def __init__(self, now: float) -> None:
        self.on_demand = False
        self._waiting = 0
        self._since = now
        """The last news, or the begin of the wait for them."""
        self._looked = -_NEVER

    @property
    def due(self) -> float:
        """When to look next."""
        if self.on_demand and not self._waiting:
            return _NEVER
        first_s = FIRST_PAUSE_ON_DEMAND_S if self.on_demand else FIRST_PAUSE_S
        waited_s = max(0.0, self._looked - self._since)
        return self._looked + min(max(_SHARE * waited_s, first_s), LONGEST_PAUSE_S)

    def looked(self, now: float, *, found: bool) -> None:
        """Note a look, and whether there were any news."""
        self._looked = now
        if found:
            self._since = now

    def begin(self, now: float) -> None:
        """Somebody waits from now on."""
        if not self._waiting:
            self._since = now
        self._waiting += 1

    def end(self) -> None:
        """Who has said ``begin`` waits no more."""
        self._waiting -= 1
