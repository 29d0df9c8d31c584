"""Compare functions fairly on a machine that is never quiet: all of them in every round.

The figure that counts is the ratio inside one round; its median over rounds is robust against
whatever else the machine does. Absolute times are medians too, and wander with the load.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Function = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of each function, a list of rounds each."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str) -> float:
        """Return how many times faster `name` is than `over`."""
        pairs = zip(self.seconds[over], self.seconds[name], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)


def compare(functions: dict[str, Function], rounds: int = 9, round_s: float = 0.02) -> Comparison:
    """Time all functions in every round, each for about `round_s` seconds."""
    repeats = {name: _repeats(function, round_s) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(_time(function, repeats[name]))
    return Comparison(seconds)


def _time(function: Function, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _repeats(function: Function, round_s: float) -> int:
    function()
    return max(1, int(round_s / max(_time(function, 1), 1e-7)))
