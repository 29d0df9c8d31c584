"""How long an embedded cloud lives: while its client does, then while somebody holds it."""

import asyncio
import contextlib
import logging
import math
import time

logger = logging.getLogger(__name__)

LOOK_S = 1.0


class Lifetime:
    """Without an end until the client is gone; then the linger time, or longer when it is held."""

    def __init__(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self._end_at = math.inf
        self._ending = asyncio.Event()

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; None while the client lives."""
        return self._end_at - time.monotonic() if self._end_at < math.inf else None

    def client_is_gone(self) -> None:
        """End after the linger time, unless someone holds the cloud meanwhile."""
        self._end_at = time.monotonic() + self._linger_s

    def hold(self, seconds: float) -> None:
        """Live at least so many seconds from now, whoever started this cloud."""
        if self._end_at < math.inf:
            self._end_at = max(self._end_at, time.monotonic() + seconds)

    def end(self) -> None:
        self._ending.set()

    async def wait_for_end(self) -> None:
        """Return when the cloud is to end: asked to, or nobody has held it for long enough."""
        while not self._ending.is_set():
            left_s = self._end_at - time.monotonic()
            if left_s <= 0:
                logger.info("the client is gone and the linger time is over")
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), min(left_s, LOOK_S))
