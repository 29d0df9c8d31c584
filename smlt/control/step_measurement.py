"""A training step as it is measured: its setting, how its batch was cut, how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from smlt.config.limits import MB_PER_VCPU

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One configuration of a step.

    `samples` is the global batch and `wire_bytes` the size of a gradient as it travels; where one
    of them never changes it may be left out.
    """

    workers: int
    memory_mb: float = MB_PER_VCPU
    aggregators: int | None = None
    samples: float = 1.0
    wire_bytes: float | None = None
    wire_share: float = 1.0
    """How much of them travels in this setting: a half, where they are rounded to 16 bits."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.memory_mb <= 0 or self.samples <= 0:
            raise ValueError(f"workers, memory and samples of {self} have to be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The mean time of some steps in one setting, in seconds.

    `communication_s` is the part of the step in which a rank did nothing but communicate.
    """

    setting: Setting
    step_s: float
    communication_s: float | None = None

    def __post_init__(self) -> None:
        communication_s = self.communication_s or 0.0
        if not 0 <= communication_s < self.step_s < float("inf"):
            raise ValueError(
                f"a step of {self.step_s} s with {communication_s} s of communication cannot be: "
                "the step has to be finite, and longer than its communication"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """How a batch is cut: into virtual workers, of which a rank has ⌈V/n⌉.

    With `remainder="dropped"` it has ⌊V/n⌋ and the rest is not computed, as in systems that divide
    the batch by an integer division. Without virtual workers the batch divides evenly.
    """

    virtual_workers: int | None = None
    remainder: Literal["kept", "dropped"] = "kept"

    def share(self, workers: Array) -> Array:
        """Return the part of the batch that the busiest rank computes."""
        total = self.virtual_workers
        if total is None:
            return 1.0 / workers
        if self.remainder == "kept":
            return np.ceil(total / workers) / total
        if np.any(workers > total):
            raise ValueError(f"{total} virtual workers leave nothing for {int(workers.max())}")
        return np.floor(total / workers) / total
