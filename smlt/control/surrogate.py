"""A Gaussian process over a grid of plans: what an unmeasured plan will give, and how surely.

Kernel: a constant, a linear and a quadratic trend, and Matérn-5/2 for what departs from it
(Rasmussen & Williams 2006, §2.7 and §4.2). The hyperparameters are not optimised, which goes astray
with a handful of observations, but averaged over: a fixed low-discrepancy sample of their prior
is weighted by the marginal likelihood (Snoek et al. 2012, §3.2, integrate them likewise). One of
them is whether a number acts as itself, by its root or by its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

from smlt.control.search_grid import WARPS, Array, SearchGrid

Indices = NDArray[np.intp]


class Posterior(NamedTuple):
    """A mixture of normal distributions for every plan of the grid."""

    weights: Array
    """Shape (components,), adding up to 1."""
    means: Array
    """Shape (components, plans)."""
    deviations: Array
    """Shape (components, plans), positive."""
    covariance: Callable[[Indices, Indices, Indices], Array]
    """Of plans with plans, by some of the components: shape (components, left, right)."""

    @property
    def mean(self) -> Array:
        return self.weights @ self.means

    @property
    def deviation(self) -> Array:
        second = self.weights @ (self.deviations**2 + self.means**2)
        deviation: Array = np.sqrt(np.maximum(second - self.mean**2, 0.0))
        return deviation


class PriorErrors(NamedTuple):
    """What is known beforehand of the errors of a prior mean."""

    scale: float
    """How far they typically are from 0, apart from what the modes explain."""
    modes: Array
    """Shape (plans, modes): errors that come together, each as large as one standard deviation."""


class Surrogate(Protocol):
    """A probabilistic model of a function on a grid."""

    def posterior(
        self, at: Indices, values: Array, noise: Array | None, prior: PriorErrors | None = None
    ) -> Posterior:
        """Condition on observations.

        Args:
            at: plans that were measured, by their number on the grid; may repeat.
            values: what was measured, in any unit.
            noise: standard deviation of each value, same unit; None where it has to be learnt.
            prior: given where the values are errors of a prior mean; without it they are centred,
                their own spread is taken, and a trend expected.
        """


class SampledGaussianProcess:
    """The process described above. Deterministic: it draws no random numbers."""

    SAMPLES = 256
    KEPT = 48  # of the heaviest samples; the rest weigh next to nothing

    def __init__(self, grid: SearchGrid) -> None:
        sizes = len(grid.dimensions)
        normal = ndtri(_lattice(self.SAMPLES, sizes + 3))
        self._lengths = 0.5 * np.exp(0.5 * normal[:, :sizes])
        self._amplitudes = 1.0 * np.exp(0.5 * normal[:, sizes])
        self._noises = 0.05 * np.exp(1.0 * normal[:, sizes + 1])
        self._trends = 1.0 * np.exp(1.0 * normal[:, sizes + 2])
        places = [grid.positions([warp] * sizes) for warp in WARPS]
        self._warps = np.arange(self.SAMPLES)[:, None] // 3 ** np.arange(sizes) % 3
        self._positions = [np.stack([p[i] for p in places]) for i in range(sizes)]
        self._plans = np.arange(len(grid))

    def posterior(
        self, at: Indices, values: Array, noise: Array | None, prior: PriorErrors | None = None
    ) -> Posterior:
        """Condition on observations; see `Surrogate.posterior`."""
        center = float(np.mean(values)) if prior is None else 0.0
        spread = float(np.std(values)) if prior is None else prior.scale
        spread = max(spread, 1e-9 * (1 + abs(center)))
        targets = (values - center) / spread
        everything = np.arange(self.SAMPLES)
        # A prior mean has accounted for the trend already.
        trends = self._trends if prior is None else np.zeros(self.SAMPLES)
        modes = np.zeros((len(self._plans), 0)) if prior is None else prior.modes / spread
        covariance = self._kernel(everything, trends, at, at) + modes[at] @ modes[at].T
        variance = np.broadcast_to(
            self._noises[:, None] if noise is None else noise / spread, covariance.shape[:2]
        )
        # The least jitter at which the Cholesky factor of close points is still sound.
        diagonal = variance**2 + 1e-8 * self._amplitudes[:, None] ** 2
        covariance += diagonal[:, :, None] * np.eye(len(at))
        factors = np.linalg.cholesky(covariance)
        solved = np.linalg.solve(factors, np.broadcast_to(targets, variance.shape)[..., None])
        likelihood = -0.5 * (solved**2).sum(axis=(1, 2)) - np.log(
            np.diagonal(factors, axis1=1, axis2=2)
        ).sum(axis=1)
        kept = np.argsort(-likelihood, kind="stable")[: self.KEPT]
        weights = np.exp(likelihood[kept] - likelihood[kept[0]])
        across = self._kernel(kept, trends, at, self._plans) + modes[at] @ modes.T
        variances = self._prior_variance(kept, trends) + (modes**2).sum(axis=1)
        across = np.linalg.solve(factors[kept], across)
        means = np.einsum("snq,sn->sq", across, solved[kept, :, 0])
        deviations = np.sqrt(np.maximum(variances - (across**2).sum(axis=1), 1e-12))

        def covariance_of(components: Indices, left: Indices, right: Indices) -> Array:
            prior_part = self._kernel(kept[components], trends, left, right)
            prior_part += modes[left] @ modes[right].T
            known = np.swapaxes(across[components][:, :, left], 1, 2)
            block: Array = prior_part - known @ across[components][:, :, right]
            return spread**2 * block

        return Posterior(
            weights / weights.sum(), center + spread * means, spread * deviations, covariance_of
        )

    def _kernel(self, samples: Indices, trends: Array, left: Indices, right: Indices) -> Array:
        squares, trend = np.zeros(1), np.ones(1)
        strength = trends[samples, None, None] ** 2
        for size, positions in enumerate(self._positions):
            place = positions[self._warps[samples, size]]
            a, b = place[:, left], place[:, right]
            length = self._lengths[samples, size, None, None]
            inner = np.einsum("sic,sjc->sij", a, b)
            norms = (a**2).sum(-1)[:, :, None] + (b**2).sum(-1)[:, None]
            squares = squares + np.maximum(norms - 2 * inner, 0.0) / length**2
            trend = trend + strength * _polynomial(a, b)
        distance = np.sqrt(5 * squares)
        matern = (1 + distance + distance**2 / 3) * np.exp(-distance)
        kernel: Array = self._amplitudes[samples, None, None] ** 2 * (matern + trend)
        return kernel

    def _prior_variance(self, samples: Indices, trends: Array) -> Array:
        trend, strength = 2.0, trends[samples, None] ** 2
        for size, positions in enumerate(self._positions):
            place = 2 * positions[self._warps[samples, size]] - 1
            trend = trend + strength * ((place**2).sum(-1) + (place**4).sum(-1))
        variance: Array = self._amplitudes[samples, None] ** 2 * trend
        return variance


def _polynomial(a: Array, b: Array) -> Array:
    """Covariance of random lines and parabolas through the middle of the unit interval."""
    a, b = 2 * a - 1, 2 * b - 1
    covariance: Array = np.einsum("sic,sjc->sij", a, b) + np.einsum("sic,sjc->sij", a**2, b**2)
    return covariance


def _lattice(count: int, dimensions: int) -> Array:
    """Evenly spread points in the open unit cube: the additive recurrence R_d of M. Roberts."""
    root = 1.5
    for _ in range(60):
        root = (1 + root) ** (1 / (dimensions + 1))
    steps = root ** -np.arange(1.0, dimensions + 1)
    points: Array = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0
    return points
