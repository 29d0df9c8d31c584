"""The discrete set of plans among which the optimiser chooses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Value = float | int | str
Plan = dict[str, Value]

WARPS = (1.0, 0.5, 0.0)  # exponents: a number is seen as itself, its root, its logarithm


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing to choose, such as workers, with its values: ascending numbers, or names."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"{self.name} has to have distinct values, not {self.values}")
        if self.is_ordered and list(self.numbers) != sorted(self.numbers):
            raise ValueError(f"the values of {self.name} have to ascend: {self.values}")

    @property
    def is_ordered(self) -> bool:
        return not any(isinstance(value, str) for value in self.values)

    @property
    def numbers(self) -> Array:
        """The values, where they are numbers; else their places."""
        values = self.values if self.is_ordered else range(len(self.values))
        return np.array([float(value) for value in values])

    def positions(self, warp: float) -> Array:
        """Place the values between 0 and 1; shape (values, 1), or one column per name.

        Names are all equally far from each other. Numbers that are not all positive have no
        logarithm and keep their own scale.
        """
        if not self.is_ordered:
            corners: Array = np.eye(len(self.values)) / np.sqrt(2)
            return corners
        numbers = self.numbers
        if warp != 1 and numbers[0] > 0:
            numbers = np.log(numbers) if warp == 0 else numbers**warp
        span = numbers[-1] - numbers[0]
        places: Array = ((numbers - numbers[0]) / (span or 1.0))[:, None]
        return places


class SearchGrid:
    """All combinations of the dimensions' values for which `allowed` holds, numbered from 0."""

    def __init__(
        self, dimensions: Iterable[Dimension], allowed: Callable[[Plan], bool] | None = None
    ) -> None:
        self.dimensions = tuple(dimensions)
        combinations = itertools.product(*(range(len(d.values)) for d in self.dimensions))
        levels = [c for c in combinations if allowed is None or allowed(self._plan(c))]
        if not levels:
            raise ValueError("no plan is allowed: the grid is empty")
        self.levels: NDArray[np.intp] = np.array(levels, dtype=np.intp)
        """Shape (plans, dimensions): which value of each dimension a plan has."""
        self._index = {combination: index for index, combination in enumerate(levels)}

    def __len__(self) -> int:
        return len(self.levels)

    def plan(self, index: int) -> Plan:
        return self._plan(self.levels[index])

    def index(self, plan: Mapping[str, Value]) -> int:
        """Return the number of a plan.

        Raises:
            ValueError: the plan is not on the grid.
        """
        try:
            levels = tuple(d.values.index(plan[d.name]) for d in self.dimensions)
            return self._index[levels]
        except (KeyError, ValueError):
            raise ValueError(f"{dict(plan)} is not on the grid of plans") from None

    def column(self, name: str) -> Array:
        """The values of one dimension for all plans; shape (plans,)."""
        for place, dimension in enumerate(self.dimensions):
            if dimension.name == name:
                return dimension.numbers[self.levels[:, place]]
        raise ValueError(f"the grid has no dimension {name!r}")

    def positions(self, warps: Iterable[float]) -> list[Array]:
        """Place all plans in a unit cube, one array of shape (plans, columns) per dimension."""
        return [
            dimension.positions(warp)[self.levels[:, place]]
            for place, (dimension, warp) in enumerate(zip(self.dimensions, warps, strict=True))
        ]

    def spread(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draw plans that lie in different strata of every dimension: a Latin hypercube.

        In more than one dimension the draw is the one of several whose plans are farthest apart.
        """
        count = min(count, len(self))
        draws = 1 if len(self.dimensions) == 1 else 2
        hypercubes = [self._latin_hypercube(count, rng) for _ in range(draws)]
        best = max(hypercubes, key=self._smallest_distance)
        return [int(index) for index in rng.permutation(best)]

    def _latin_hypercube(self, count: int, rng: np.random.Generator) -> list[int]:
        sizes = np.array([len(d.values) for d in self.dimensions])
        strata = np.stack([rng.permutation(count) for _ in sizes], axis=1)
        wanted = (strata + rng.random(strata.shape)) / count
        # The middle of level k of s stands at (k + 1/2) / s.
        places = (self.levels + 0.5) / sizes
        chosen: list[int] = []
        for target in wanted:
            distance = np.abs(places - target).max(axis=1)
            distance[chosen] = np.inf
            chosen.append(int(distance.argmin()))
        return chosen

    def _smallest_distance(self, indices: list[int]) -> float:
        places = self.levels[indices] / np.array([len(d.values) for d in self.dimensions])
        distances = np.abs(places[:, None] - places[None]).sum(axis=2)
        return float(distances[np.triu_indices(len(indices), 1)].min(initial=np.inf))

    def _plan(self, levels: Iterable[int]) -> Plan:
        return {d.name: d.values[i] for d, i in zip(self.dimensions, levels, strict=True)}
