"""Tell a lasting change of the step time from chance: a two-sided CUSUM of the logarithms."""

from __future__ import annotations

import math

CHANGE = 0.15  # the least relative change that matters
_ALLOWANCE = math.log1p(CHANGE) / 2
_CLIP = 0.25  # one step, however slow, counts for no more than this
_LEAST = 0.4  # no alarm after fewer than two clipped steps
_RUN_LENGTH = math.log(1e5)  # steps between false alarms, about


class DriftDetector:
    """Watches steps that should take `expected_s`, give or take a relative `noise`."""

    def __init__(self, expected_s: float, noise: float) -> None:
        self._expected = math.log(expected_s)
        # Siegmund's approximation: the mean run length grows as exp(2 k h / σ²).
        self._threshold = max(_LEAST, noise**2 * _RUN_LENGTH / (2 * _ALLOWANCE))
        self._slower = self._faster = 0.0

    def drifted(self, step_s: float) -> bool:
        """Take in a step; whether steps have become lastingly slower or faster."""
        deviation = math.log(max(step_s, 1e-9)) - self._expected
        deviation = max(-_CLIP, min(_CLIP, deviation))
        self._slower = max(0.0, self._slower + deviation - _ALLOWANCE)
        self._faster = max(0.0, self._faster - deviation - _ALLOWANCE)
        return max(self._slower, self._faster) > self._threshold
