"""What functions cost so far: calls that ended by Lambda's word, those that run by the clock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from smlt.control.cost_model import Architecture, gb_seconds, lambda_cost
from smlt.control.prices import REGION, Prices

LEAST_TMP_MB = 512
"""Every function has so much of /tmp, for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionKind:
    """What the price of a function depends on, beside its memory."""

    region: str = REGION
    architecture: Architecture = "x86_64"
    ephemeral_mb: int = LEAST_TMP_MB


PLAIN = FunctionKind()


@dataclass(slots=True)
class _Running:
    """Calls of one size that are not over: many of them, asked for often."""

    count: int = 0
    begun: float = 0.0
    """Sum of the times at which they began."""

    def billed_ms(self, now: float) -> float:
        return max(0.0, self.count * now - self.begun) * 1000


class Bill:
    """Counts in GB-seconds and in dollars."""

    def __init__(self, prices: Prices, kind: FunctionKind, earlier: tuple[float, float]) -> None:
        """Begin with what an earlier client of the job was billed: GB-seconds and dollars."""
        self._prices = prices
        self._kind = kind
        self._ended = earlier
        self._running: dict[int, _Running] = defaultdict(_Running)

    def begin(self, memory_mb: int, now: float) -> None:
        """Count a call as running."""
        running = self._running[memory_mb]
        running.count += 1
        running.begun += now

    def end(self, memory_mb: int, begun: float, billed_ms: float) -> None:
        """Count a call that began then by what it is billed."""
        running = self._running[memory_mb]
        running.count -= 1
        running.begun -= begun
        self._add(*self._cost(billed_ms, memory_mb, 1))

    def correct(self, memory_mb: int, presumed_ms: float, billed_ms: float) -> None:
        """Put what an ended call is billed in the place of what was presumed of it."""
        self._add(*self._cost(billed_ms - presumed_ms, memory_mb, 0))

    def charge(self, memory_mb: int, billed_ms: float) -> None:
        """Count a call of a function that has no more of /tmp than all have."""
        self._add(
            gb_seconds(billed_ms, memory_mb),
            lambda_cost(
                billed_ms,
                memory_mb,
                1,
                architecture=self._kind.architecture,
                prices=self._prices,
            ),
        )

    def total(self, now: float) -> tuple[float, float]:
        """Return GB-seconds and US dollars so far, at Lambda's prices."""
        amount, dollars = self._ended
        for memory_mb, running in self._running.items():
            more = self._cost(running.billed_ms(now), memory_mb, running.count)
            amount, dollars = amount + more[0], dollars + more[1]
        return amount, dollars

    def _cost(self, billed_ms: float, memory_mb: int, calls: int) -> tuple[float, float]:
        return gb_seconds(billed_ms, memory_mb), lambda_cost(
            billed_ms,
            memory_mb,
            calls,
            ephemeral_mb=self._kind.ephemeral_mb,
            architecture=self._kind.architecture,
            prices=self._prices,
        )

    def _add(self, amount: float, dollars: float) -> None:
        self._ended = self._ended[0] + amount, self._ended[1] + dollars
