"""What a measurement of each plan promises, given what is thought of all of them."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr  # type: ignore[import-untyped]

from smlt.control.search_grid import Array
from smlt.control.surrogate import Indices, Posterior

HEAVIEST = 24  # components that the knowledge gradient looks at


def expected_improvement(posterior: Posterior, best: int, noise: float = 0.0) -> Array:
    """Return how far below the best plan's mean each plan is expected to be, counting only gains.

    With noise it is discounted where a measurement would teach little: the augmented expected
    improvement of Huang et al. (2006). Shape (plans,), not negative.
    """
    gap = posterior.mean[best] - posterior.means
    standard = gap / posterior.deviations
    density = np.exp(-0.5 * standard**2) / np.sqrt(2 * np.pi)
    improvement = posterior.weights @ (gap * ndtr(standard) + posterior.deviations * density)
    if noise:
        improvement = improvement * (1 - noise / np.hypot(noise, posterior.deviation))
    result: Array = np.maximum(improvement, 0.0)
    return result


def knowledge_gradient(
    posterior: Posterior, candidates: Indices, solutions: Indices, noise: float
) -> Array:
    """Return by how much measuring each candidate once is expected to lower the least mean.

    The least mean is that of any of the solutions, measured or not (Frazier et al. 2009), by
    Gauss-Hermite quadrature over the outcome. Shape (candidates,), not negative.
    """
    heaviest = np.argsort(-posterior.weights, kind="stable")[:HEAVIEST]
    weights = posterior.weights[heaviest] / posterior.weights[heaviest].sum()
    # One measurement moves all means together, by a normal variate times these shifts.
    shifts = posterior.covariance(heaviest, candidates, solutions)
    shifts = shifts / np.hypot(posterior.deviations[heaviest][:, candidates], noise)[..., None]
    now = posterior.means[heaviest][:, solutions]
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(9)
    after = sum(
        weight * (now[:, None, :] + node * shifts).min(axis=2)
        for node, weight in zip(nodes, node_weights / node_weights.sum(), strict=True)
    )
    gain: Array = np.maximum(weights @ (now.min(axis=1)[:, None] - after), 0.0)
    return gain
