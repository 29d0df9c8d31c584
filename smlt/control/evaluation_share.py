"""How long the evaluations of a job take beside the training between them."""

from __future__ import annotations


class EvaluationShare:
    """Is told of steps and evaluations in the order in which they come."""

    def __init__(self) -> None:
        self.fraction = 0.0
        """What evaluations take, as a fraction of the steps before each; 0 until one is known.

        The test split is shared by all workers as a batch is, and measured as often from now on.
        """
        self._trained_s: float | None = None
        """Of all steps since the last evaluation; None where the first of them were not seen."""

    def step(self, seconds: float, *, is_first: bool) -> None:
        """Count a training step; ``is_first`` of the job."""
        if is_first:
            self._trained_s = 0.0
        if self._trained_s is not None:
            self._trained_s += seconds

    def evaluation(self, seconds: float) -> None:
        """Count an evaluation."""
        if self._trained_s:
            self.fraction = seconds / self._trained_s
        self._trained_s = 0.0
