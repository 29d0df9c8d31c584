"""The performance model as a prior mean of the optimiser."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from smlt.control.performance_model import fit_performance
from smlt.control.search_grid import Array, Plan, SearchGrid
from smlt.control.step_measurement import Granularity, Measurement, Setting


class PerformancePrior:
    """Refits the performance model to whatever has been measured, and predicts all plans.

    The values are step times multiplied by `factor`: the number of steps for a job's time;
    steps × workers × gigabytes × price for its cost.
    """

    def __init__(
        self,
        grid: SearchGrid,
        setting: Callable[[Plan], Setting],
        factor: Callable[[Plan], float] | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        plans = [grid.plan(index) for index in range(len(grid))]
        self._settings = [setting(plan) for plan in plans]
        self._factors = np.array([1.0 if factor is None else factor(plan) for plan in plans])
        self._granularity = granularity

    def __call__(self, at: NDArray[np.intp], values: Array) -> tuple[Array, Array]:
        """Return the expected value of every plan, and the modes of its error; see PriorMean."""
        steps = values / self._factors[at]
        model = fit_performance(
            [
                Measurement(setting=self._settings[i], step_s=float(step))
                for i, step in zip(at, steps, strict=True)
            ],
            self._granularity,
        )
        expected = model.predict(self._settings).step_s * self._factors
        return expected, model.sensitivities(self._settings)
