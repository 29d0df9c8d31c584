"""A slow link between a rank and the parameter store, for trying here what a function would do.

A token bucket for each direction counts every byte that goes over the sockets of the data path,
commands and replies included; all connections of one store share it. Of redis-py's control
commands, some hundred bytes a second, it knows nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from smlt.errors import ConfigError

_OPTION = re.compile(r"(?<=[?&])link_mbps=([^&]*)&?")
# What a bucket holds: timers are late by about a millisecond, and that is not to cost any bytes.
_BURST_S = 0.01
_PIECE_S = 0.002
_PIECES = (1 << 10, 256 << 10)


class TokenBucket:
    """Lets so many bytes a second pass, counted after they have: then the next have to wait."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float]) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = clock()
        self.passed = 0
        """Bytes, so far."""
        self.piece = int(min(max(bytes_per_s * _PIECE_S, _PIECES[0]), _PIECES[1]))
        """How much to move at once, in bytes, lest one connection keep the others waiting."""

    def delay_s(self) -> float:
        """Return how long nothing may pass; 0 when something may."""
        return max(0.0, self._free_at - self._clock())

    def spend(self, nbytes: int) -> None:
        """Count bytes that have passed."""
        self.passed += nbytes
        begun = max(self._free_at, self._clock() - _BURST_S)
        self._free_at = begun + nbytes / self._bytes_per_s

    async def turn(self) -> None:
        """Wait until something may pass."""
        while (delay_s := self.delay_s()) > 0:  # noqa: ASYNC110 - another connection may be first
            await asyncio.sleep(delay_s)

    async def carry(self, nbytes: int) -> None:
        """Return when so many bytes would have passed, where their sockets are out of reach."""
        self.spend(nbytes)
        await asyncio.sleep(self.delay_s())


class LinkRate:
    """Both directions of a rank's link, of ``mbps`` times 1,000,000 bytes a second each."""

    def __init__(self, mbps: float) -> None:
        self._mbps = mbps
        self._buckets: tuple[TokenBucket, TokenBucket] | None = None

    @property
    def up(self) -> TokenBucket:
        return self._both()[0]

    @property
    def down(self) -> TokenBucket:
        return self._both()[1]

    def _both(self) -> tuple[TokenBucket, TokenBucket]:
        # Made on the event loop, whose clock they keep.
        if self._buckets is None:
            clock, rate = asyncio.get_running_loop().time, self._mbps * 1e6
            self._buckets = TokenBucket(rate, clock), TokenBucket(rate, clock)
        return self._buckets


def paced(url: str, mbps: float | None) -> str:
    """Return the URL of a parameter store behind a link of so many megabytes a second."""
    if mbps is None:
        return url
    return f"{url}{'&' if '?' in url.rpartition(',')[2] else '?'}link_mbps={mbps:g}"


def take_rate(url: str) -> tuple[str, LinkRate | None]:
    """Return a URL without its ``link_mbps``, and the link that it asks for.

    Raises:
        ConfigError: it is no rate.
    """
    found = _OPTION.search(url)
    if found is None:
        return url, None
    try:
        mbps = float(found[1])
    except ValueError:
        mbps = 0.0
    if not 0 < mbps < float("inf"):
        raise ConfigError(f"link_mbps={found[1]} is no rate: give megabytes a second, more than 0")
    rest = _OPTION.sub("", url)
    return rest.rstrip("?&"), LinkRate(mbps)
