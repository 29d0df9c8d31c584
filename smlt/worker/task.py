"""What the user writes: the framework-neutral task that a trainer drives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from smlt.errors import CheckpointError, SmltError, TaskError
from smlt.io.tensor import Tensor, as_tensor
from smlt.worker import seeding
from smlt.worker.data_iterator import Data

Views = Mapping[str, NDArray[np.float32]]
"""Named float32 arrays, each a view into one flat buffer."""


class Dataset(Protocol):
    """A map-style dataset: a length, and one record for each index.

    Two methods are optional. ``transform(record)`` makes the sample of a record and is where
    random numbers are drawn; ``__getitems__(indices)`` reads many records at once.
    """

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
    rest has defaults. Everything that a later step depends on must be in ``state`` or ``scalars``:
    it is what makes ranks equal, what a checkpoint holds and what a restart begins from.
    Randomness comes from ``numpy.random`` and ``random``, which are seeded before every step.
    """

    grow_at: Collection[int] = ()
    """Epochs, the first being 0, before which ``grow`` changes the model."""

    @abstractmethod
    def dataset(self, data: Data, split: str) -> Dataset:
        """Return the map-style dataset of a split, ``"train"`` or ``"test"``."""
        ...

    @abstractmethod
    def initialize(self, seed: int, total_steps: int | None) -> None:
        """Make state 0: weights and whatever the optimiser keeps.

        Called once, before anything below, also where a state is loaded afterwards.
        """
        ...

    @abstractmethod
    def state(self) -> dict[str, Tensor | NDArray[Any]]:
        """Return every array of the replicated state, by name: valid until the next call."""
        ...

    @abstractmethod
    def gradients(
        self, samples: Sequence[Any], into: Views, ready: Callable[[str], None]
    ) -> Contribution:
        """Write the gradient of the *sum* of the samples' losses into the zeroed views.

        Call ``ready(name)`` as soon as a view is final (optional), so that it can be sent while
        the rest is computed. May be called several times in a step, each time with other samples
        and views, and must not change the state: every call begins from that of the step's start.
        """
        ...

    @abstractmethod
    def apply(self, mean: Views, present: frozenset[str]) -> None:
        """Take one optimiser step with the mean gradients; leave tensors not in ``present``.

        The views may be overwritten, by clipping for one; they are not valid after the call.
        """
        ...

    def batch_size(self, epoch: int) -> int | None:
        """Return how many samples a step has in an epoch, over all workers; None: as the job says.

        It must be the same on every rank and whenever it is asked for, as ``grow_at`` must.
        """
        return None

    def grow(self, epoch: int) -> None:
        """Change the model before an epoch of ``grow_at``: arrays may come, go, and change shape.

        ``state`` and ``averaged`` tell afterwards what there is. What it becomes may depend on the
        epoch and on what it was, and on nothing else: where a later state is loaded, it is called
        again for its shapes alone.
        """
        raise TaskError(f"{type(self).__name__}.grow_at names epochs, but grow() is not written")

    def seed_generators(self, seed: int) -> None:
        """Seed each global generator that the task's code may draw from (63 bits of seed)."""
        seeding.seed_generators(seed)

    def scalars(self) -> dict[str, Any]:
        """Return the part of the replicated state that is no array; must survive strict JSON."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take over a state. The default copies arrays in place and knows no scalars.

        Raises:
            CheckpointError: names, shapes or dtypes are not those of this task.
        """
        copy_in_place(self.state(), tensors, CheckpointError)

    def weights(self) -> dict[str, Tensor | NDArray[Any]]:
        """Return what the final model file holds; by default the whole state."""
        return self.state()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Begin from given weights (``--init-from``); the default copies them in place.

        Raises:
            TaskError: names, shapes or dtypes are not those of this task.
        """
        copy_in_place(self.weights(), weights, TaskError)

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

    def drain_metrics(self) -> dict[str, Metric]:
        """Return the user's own training metrics since the last call, and forget them."""
        return {}


def describe_mismatch(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> str:
    """Return in words how names and shapes differ, or an empty string where they do not."""
    parts = []
    if missing := sorted(wanted.keys() - given.keys()):
        parts.append(f"missing {_enumerate(missing)}")
    if unexpected := sorted(given.keys() - wanted.keys()):
        parts.append(f"unexpected {_enumerate(unexpected)}")
    parts += [
        f"{name} has shape {given[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ][:3]
    return "; ".join(parts)


def copy_in_place(
    live: Mapping[str, Tensor | NDArray[Any]],
    given: Mapping[str, Tensor],
    error: type[SmltError],
) -> None:
    """Overwrite arrays with those of the same names, or change none and raise ``error``."""
    wanted = {name: as_tensor(array) for name, array in live.items()}
    difference = describe_mismatch(
        {name: tensor.shape for name, tensor in wanted.items()},
        {name: tensor.shape for name, tensor in given.items()},
    )
    if difference:
        raise error(f"the tensors do not fit this task: {difference}")
    for name, tensor in wanted.items():
        if tensor.dtype != given[name].dtype:
            raise error(f"{name} is {given[name].dtype}, but this task has it as {tensor.dtype}")
    for name, tensor in wanted.items():
        tensor.data[...] = given[name].data


def _enumerate(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
