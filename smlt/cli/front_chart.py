"""Draw plans by their time and cost, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from smlt.cli.wording import clock_time

if TYPE_CHECKING:  # SciPy is behind it
    from smlt.control.forecast import Forecast

WIDTH, HEIGHT = 60, 14
_LEAST_USD = 1e-9
OTHER, FRONT, BEST = "·", "●", "★"


def draw(rows: Sequence[Forecast], best: Forecast) -> str:
    """Return cost over time, both on logarithmic scales: the front, and all other plans."""
    times = [math.log(row.time_s) for row in rows]
    # Rates of a user's own may be zero, which a logarithm has no place for.
    costs = [math.log(max(row.cost_usd, _LEAST_USD)) for row in rows]
    canvas = [[" "] * WIDTH for _ in range(HEIGHT)]

    def rank(row: Forecast) -> int:
        return 2 * (row.plan == best.plan) + row.on_front

    # The ones that matter are drawn last.
    for row, time, cost in sorted(zip(rows, times, costs, strict=True), key=lambda r: rank(r[0])):
        x = _place(time, times, WIDTH)
        y = HEIGHT - 1 - _place(cost, costs, HEIGHT)
        canvas[y][x] = BEST if row.plan == best.plan else FRONT if row.on_front else OTHER
    paid = [row.cost_usd for row in rows]
    labels = {0: f"${max(paid):.3g}", HEIGHT - 1: f"${min(paid):.3g}"}
    width = max(map(len, labels.values()))
    lines = [f"{labels.get(y, ''):>{width}} │{''.join(line)}" for y, line in enumerate(canvas)]
    first, last = clock_time(math.exp(min(times))), clock_time(math.exp(max(times)))
    axis = f"{'':>{width}} └{'─' * WIDTH}"
    scale = f"{'':>{width}}  {first}{last:>{WIDTH - len(first)}}"
    words = f"{BEST} recommended  {FRONT} none is sooner and cheaper  {OTHER} other plans"
    key = f"{'':>{width}}  {words}"
    return "\n".join(line.rstrip() for line in [*lines, axis, scale, key])


def _place(value: float, values: Sequence[float], cells: int) -> int:
    low, high = min(values), max(values)
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0
