"""scikit-optimize's Gaussian process behind our interface; docs/decisions/0008 compares the two."""

from __future__ import annotations

import warnings

import numpy as np
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from smlt.control.search_grid import Array, SearchGrid
from smlt.control.surrogate import Indices, Posterior, PriorErrors


class SkoptGaussianProcess:
    """Matérn-5/2 with one length per dimension, hyperparameters by maximum likelihood.

    Its kernel cannot carry the modes of a prior mean's errors: only their size is used.
    """

    RESTARTS = 2
    SMALLEST_VARIANCE = 1e-8  # of standardised values: keeps the covariance positive definite

    def __init__(self, grid: SearchGrid, seed: int = 0) -> None:
        self._seed = seed
        self._positions = np.hstack(grid.positions([1.0] * len(grid.dimensions)))

    def posterior(
        self, at: Indices, values: Array, noise: Array | None, prior: PriorErrors | None = None
    ) -> Posterior:
        """Condition on observations; see `Surrogate.posterior`."""
        center = float(np.mean(values)) if prior is None else 0.0
        spread = float(np.std(values)) if prior is None else _typical(prior)
        spread = max(spread, 1e-9 * (1 + abs(center)))
        lengths = np.full(self._positions.shape[1], 0.5)
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(lengths, (0.05, 10.0), nu=2.5)
        if noise is None:
            kernel = kernel + WhiteKernel(1e-2, (1e-6, 1.0))
        variances = np.zeros(len(at)) if noise is None else (noise / spread) ** 2
        process = GaussianProcessRegressor(
            kernel,
            alpha=variances + self.SMALLEST_VARIANCE,
            n_restarts_optimizer=self.RESTARTS,
            random_state=self._seed,
        )
        with warnings.catch_warnings():
            # A hyperparameter at its bound is no news with a handful of observations.
            warnings.simplefilter("ignore")
            process.fit(self._positions[at], (values - center) / spread)
            mean, deviation = process.predict(self._positions, return_std=True)

        def covariance_of(_: Indices, left: Indices, right: Indices) -> Array:
            both = self._positions[np.concatenate([left, right])]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, block = process.predict(both, return_cov=True)
            return spread**2 * np.asarray(block)[None, : len(left), len(left) :]

        return Posterior(
            np.ones(1),
            (center + spread * mean)[None],
            spread * np.maximum(deviation, 1e-6)[None],
            covariance_of,
        )


def _typical(prior: PriorErrors) -> float:
    return float(np.hypot(prior.scale, np.sqrt((prior.modes**2).sum(axis=1).mean())))
