"""Whether a generation that failed is followed by another one, and after how long."""

from __future__ import annotations

from collections import Counter

from smlt.messages.job import Position
from smlt.messages.worker import Failure

# All of these count generations since a newer state was last saved.
_SAME_FAILURE = 3
# A machine that computes other bits is given up: each try may meet others.
_UNFIT_HOSTS = 5
_OF_ONE_RANK = 5
_BARREN = 10
# These come again for certain: another try would only cost.
_FATAL = {"numbers", "diverged", "memory", "user", "unreachable"}
_BACKOFF_S = 0.5
_BACKOFF_LIMIT_S = 30.0


class Retries:
    """Counts a job's failures. A newer state, saved, is progress: counting begins anew."""

    def __init__(self) -> None:
        self._reached: Position | None = None
        self._tries = 0
        self._alike: Counter[tuple[str, str]] = Counter()
        self._of_rank: Counter[int] = Counter()

    @property
    def delay_s(self) -> float:
        """How long to wait before the next generation: twice as long after each failure."""
        return min(_BACKOFF_S * 2.0 ** (self._tries - 1), _BACKOFF_LIMIT_S) if self._tries else 0.0

    def end(self, failure: Failure, newest: Position | None) -> str:
        """Take in how a generation ended, and with what newest state.

        Returns:
            Why the job ends with it; nothing where another generation may help.
        """
        if newest != self._reached:
            self._reached = newest
            self._tries = 0
            self._alike.clear()
            self._of_rank.clear()
        self._tries += 1
        self._alike[failure.signature] += 1
        if failure.rank is not None:
            self._of_rank[failure.rank] += 1
        if failure.kind in _FATAL:
            return failure.message
        most = _UNFIT_HOSTS if failure.kind == "host" else _SAME_FAILURE
        if self._alike[failure.signature] == most:
            return f"{failure.message} ({most} times)"
        if failure.rank is not None and self._of_rank[failure.rank] == _OF_ONE_RANK:
            return f"{failure.message} (rank {failure.rank} failed {_OF_ONE_RANK} times)"
        if self._tries == _BARREN:
            return f"{failure.message} ({_BARREN} generations without a step)"
        return ""
