"""What the user writes: the framework-neutral task that a trainer drives."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from smlt.io.tensor import Tensor, as_tensor
from smlt.worker.data_iterator import Data

Views = Mapping[str, NDArray[np.float32]]
"""Named float32 arrays, each a view into one flat buffer."""


class Dataset(Protocol):
    """A map-style dataset: a length, and one sample for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Contribution:
    """One rank's part in a step, beside the gradient sums that it wrote into the views."""

    loss_sum: float
    """Sum of the samples' losses, not their mean."""
    absent: frozenset[str] = frozenset()
    """Tensors that got no gradient at all here; absent on every rank, they stay untouched."""


class Metric(NamedTuple):
    """A sum and its weight: they add up over batches and ranks, and their ratio is the metric."""

    total: float
    weight: float


class Task(Protocol):
    """A model, its data and how it learns, in terms of named arrays.

    Subclass it and write ``dataset``, ``initialize``, ``state``, ``gradients`` and ``apply``; the
    rest has defaults. Everything that a later step depends on must be in ``state``: it is what
    makes ranks equal, what a checkpoint holds and what a restart begins from. Randomness comes
    from ``numpy.random`` and ``random``, which are seeded before every step.
    """

    def dataset(self, data: Data, split: str) -> Dataset:
        """Return the map-style dataset of a split, ``"train"`` or ``"test"``."""
        ...

    def initialize(self, seed: int, total_steps: int | None) -> None:
        """Make state 0: weights and whatever the optimiser keeps."""
        ...

    def state(self) -> dict[str, Tensor | NDArray[Any]]:
        """Return every array of the replicated state, by name, as live references."""
        ...

    def gradients(
        self, samples: Sequence[Any], into: Views, ready: Callable[[str], None]
    ) -> Contribution:
        """Write the gradient of the *sum* of the samples' losses into the zeroed views.

        Call ``ready(name)`` as soon as a view is final (optional), so that it can be sent while
        the rest is computed. The replicated state is unchanged on return, also after an
        exception: whatever the computation moved (a BatchNorm's running mean) is put back.
        """
        ...

    def apply(self, mean: Views, present: frozenset[str]) -> None:
        """Take one optimiser step with the mean gradients; leave tensors not in ``present``."""
        ...

    def scalars(self) -> dict[str, Any]:
        """Return the part of the replicated state that is no array; must survive JSON."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take over a state. The default copies arrays in place and knows no scalars."""
        for name, array in self.state().items():
            as_tensor(array).data[...] = tensors[name].data

    def weights(self) -> dict[str, Tensor | NDArray[Any]]:
        """Return what the final model file holds; by default the whole state."""
        return self.state()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Begin from given weights (``--init-from``); the default copies them in place."""
        for name, array in self.weights().items():
            as_tensor(array).data[...] = weights[name].data

    def averaged(self) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of what is averaged each step, in the order of backward."""
        return {name: as_tensor(array).shape for name, array in self.weights().items()}

    def measure(self, samples: Sequence[Any]) -> dict[str, Metric]:
        """Return sums and weights of the test metrics over these samples of the test split."""
        return {}

    @property
    def evaluates(self) -> bool:
        """Whether evaluation steps take place: by default, when ``measure`` is written."""
        return type(self).measure is not Task.measure

    def seed(self, seed: int) -> None:
        """Seed every generator that the task draws from; called on the trainer's thread."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 — user code draws from the global generator

    def drain_metrics(self) -> dict[str, Metric]:
        """Return the user's own training metrics since the last call, and forget them."""
        return {}
