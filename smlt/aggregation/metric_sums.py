"""Named sums and their weights, added up in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Metrics = dict[str, tuple[float, float]]
"""Sums and their weights, by name."""


def added(parts: Sequence[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Add in the left-complete binary tree over the parts, in float64.

    The sum of an aligned power of two of parts is a subtree: so it does not matter for the bits
    how many ranks share them (decision 0025).
    """
    if len(parts) <= 1:
        return dict(parts[0]) if parts else {}
    half = 1 << (len(parts) - 1).bit_length() - 1
    total, right = added(parts[:half]), added(parts[half:])
    for name, (value, weight) in right.items():
        before = total.get(name)
        total[name] = (value, weight) if before is None else (before[0] + value, before[1] + weight)
    return total
