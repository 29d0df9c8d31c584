"""What a test metric is asked to do: reach a bound, or be the best so far.

Read by the client, to refuse what makes no sense, and by the ranks, to decide.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import NamedTuple

from smlt.errors import ConfigError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_UNTIL = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*(\S+)\s*")


class Until(NamedTuple):
    """A bound on a test metric at which training ends."""

    metric: str
    comparison: str
    value: float

    def reached(self, measured: float) -> bool:
        """Whether the measured metric satisfies the bound; a NaN never does."""
        return _COMPARISONS[self.comparison](measured, self.value)

    @property
    def lower_is_better(self) -> bool:
        return self.comparison.startswith("<")


class BestBy(NamedTuple):
    """The test metric that tells the best weights from the rest."""

    metric: str
    lower_is_better: bool

    def improves(self, measured: float, best: float | None) -> bool:
        """Whether a measurement beats the best so far; a NaN never does."""
        if math.isnan(measured):
            return False
        if best is None:
            return True
        return measured < best if self.lower_is_better else measured > best


def parse_until(text: str, where: str = "--until") -> Until:
    """Read ``metric>=number`` (or ``<=``, ``>``, ``<``).

    Raises:
        ConfigError: the text has another form, or the number is not finite.
    """
    match = _UNTIL.fullmatch(text)
    if match is None or not _is_finite(match[3]):
        raise ConfigError(
            f"{where} is {text!r}: write a metric, one of >= <= > <, and a number, "
            "as in 'accuracy>=0.95'."
        )
    return Until(match[1], match[2], float(match[3]))


def parse_best(text: str, where: str = "--keep-best") -> BestBy:
    """Read ``metric``, ``metric:max`` or ``metric:min``.

    Without a direction, lower is better for a metric with loss, error or perplexity in its name.

    Raises:
        ConfigError: no metric is named, or the direction is neither max nor min.
    """
    metric, colon, direction = text.strip().rpartition(":")
    if not colon:
        metric, direction = direction, ""
    if not metric or (colon and direction not in ("max", "min")):
        raise ConfigError(
            f"{where} is {text!r}: name a metric that evaluate() returns, "
            "if need be with its direction, as in 'accuracy' or 'score:min'."
        )
    if direction:
        return BestBy(metric, direction == "min")
    name = metric.lower()
    return BestBy(metric, any(word in name for word in ("loss", "error", "perplexity")))


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
