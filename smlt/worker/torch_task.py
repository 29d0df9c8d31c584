"""``TorchTask``: a PyTorch model, its data and its loss, as a task that smlt trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from smlt.errors import TaskError
from smlt.io.tensor import Tensor
from smlt.worker.data_iterator import Data
from smlt.worker.task import (
    Contribution,
    Dataset,
    Metric,
    Task,
    Views,
    describe_mismatch,
)
from smlt.worker.torch_buffers import BufferAverager
from smlt.worker.torch_gradients import GradientViews
from smlt.worker.torch_hooks import (
    check_loss,
    check_metrics,
    check_model,
    check_optimizer,
    check_scheduler,
    check_settings,
)
from smlt.worker.torch_modes import autocast, evaluating, reproducible
from smlt.worker.torch_state import TorchState, export_all
from smlt.worker.torch_tensors import create


@dataclass(slots=True)
class _Training:
    """What ``initialize`` builds from the user's hooks."""

    model: nn.Module
    gradients: GradientViews
    buffers: BufferAverager
    state: TorchState
    averaged: dict[str, tuple[int, ...]]
    total_steps: int | None


class TorchTask(Task):
    """Write ``dataset``, ``model``, ``optimizer`` and ``loss``; every other hook is optional.

    Hooks are called on every rank with the same model. Between steps nothing lives on but the
    model, the optimizer and the scheduler: do not count or accumulate in attributes of the task.
    Randomness comes from torch, ``numpy.random`` and ``random``, seeded before every step.
    """

    clip_norm: float | None = None
    """Largest global norm of the averaged gradient; None leaves it as it is."""
    accumulate: int = 1
    """Number of micro-batches into which a rank cuts its samples, to save memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``"bf16"`` runs ``loss`` and ``evaluate`` under autocast; weights stay as they are."""

    _training: _Training | None = None
    _logged: dict[str, Metric] | None = None

    @abstractmethod
    def dataset(self, data: Data, split: str) -> Dataset:
        """Return the map-style dataset of a split, ``"train"`` or ``"test"``."""
        ...

    @abstractmethod
    def model(self) -> nn.Module:
        """Return the model, newly initialised; called once, after seeding."""
        ...

    @abstractmethod
    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return an optimizer over the model's parameters."""
        ...

    def scheduler(
        self, optimizer: torch.optim.Optimizer, total_steps: int | None
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Return a scheduler, stepped once per step; ``total_steps`` is None in open-ended jobs.

        Where ``smlt resume`` makes the job longer, it goes on as if it had always been so long.
        """
        return None

    def grown(self, model: Any, epoch: int) -> nn.Module:
        """Return the model that trains from an epoch of ``grow_at`` on; it may be the same object.

        What it takes over of the weights is up to it. The optimizer and the scheduler are made
        anew, and keep what they have of parameters whose name and shape stay the same. It may
        depend on the epoch and the model, and on nothing else.
        """
        raise TaskError(f"{type(self).__name__}.grow_at names epochs, but grown() is not written")

    def collate(self, samples: Sequence[Any]) -> Any:
        """Return a batch of samples; by default torch's ``default_collate``."""
        return default_collate([_writable(sample) for sample in samples])

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Return the mean loss over the batch, a scalar tensor."""
        ...

    def evaluate(self, model: Any, batch: Any) -> dict[str, tuple[torch.Tensor | float, int]]:
        """Return (sum, count) by metric over a batch of the test split, in eval mode, no grad."""
        return {}

    def log(self, name: str, value: torch.Tensor | float, weight: float = 1) -> None:
        """Report a metric from ``loss``: the mean of ``value`` over batches and ranks, weighted."""
        if self._logged is None:
            self._logged = {}
        total, weights = self._logged.get(name, Metric(0.0, 0.0))
        self._logged[name] = Metric(total + float(value) * weight, weights + weight)

    # --- what the trainer calls ------------------------------------------------------------

    @property
    def evaluates(self) -> bool:
        return type(self).evaluate is not TorchTask.evaluate

    def seed_generators(self, seed: int) -> None:
        super().seed_generators(seed)
        # On the CPU, torch looks at the low 32 bits only.
        torch.manual_seed(seed ^ (seed >> 32))

    def initialize(self, seed: int, total_steps: int | None) -> None:
        """Build model, optimizer and scheduler.

        Raises:
            TaskError: a hook returned something that cannot be trained.
        """
        check_settings(self)
        self.seed_generators(seed)
        self._training = self._trained(check_model(self.model()), total_steps)

    def grow(self, epoch: int) -> None:
        """Go on with the model that ``grown`` returns.

        Raises:
            TaskError: a hook returned something that cannot be trained.
        """
        run = self._run
        kept = run.state.kept()
        run.gradients.close()
        grown = check_model(self.grown(run.model, epoch), "grown()")
        self._training = self._trained(grown, run.total_steps)
        with torch.no_grad():
            self._run.state.take_over(kept)

    def _trained(self, model: nn.Module, total_steps: int | None) -> _Training:
        optimizer = check_optimizer(self.optimizer(model), model)
        scheduler = check_scheduler(self.scheduler(optimizer, total_steps))
        gradients, buffers = GradientViews(model), BufferAverager(model)
        return _Training(
            model,
            gradients,
            buffers,
            TorchState(model, optimizer, scheduler, total_steps),
            # Buffers are final before backward begins.
            averaged=buffers.shapes() | gradients.shapes(),
            total_steps=total_steps,
        )

    def averaged(self) -> dict[str, tuple[int, ...]]:
        return self._run.averaged

    def gradients(
        self, samples: Sequence[Any], into: Views, ready: Callable[[str], None]
    ) -> Contribution:
        """Run forward and backward over the samples, in ``accumulate`` micro-batches."""
        run = self._run
        if not samples:
            return Contribution(0.0, frozenset(run.averaged))
        parts = _split(samples, self.accumulate)
        loss_sum, unchanged = 0.0, frozenset[str]()
        run.gradients.begin(into)
        run.buffers.begin()
        try:
            with reproducible():
                for part in parts:
                    run.buffers.restore()
                    loss = self._loss_sum(run.model, part)
                    loss_sum += loss.item()
                    # Not after backward: checkpointed layers run forward, and update, again there.
                    run.buffers.collect(len(part))
                    is_last = part is parts[-1]
                    if is_last:
                        unchanged = run.buffers.write(into, ready)
                    run.gradients.backward(loss, ready if is_last else None)
        finally:
            # Also where the user's code has raised: the state is saved as it was before the step.
            run.buffers.restore()
        without = run.gradients.end()
        return Contribution(loss_sum, without | unchanged)

    def apply(self, mean: Views, present: frozenset[str]) -> None:
        """Take one step of the optimizer and of the scheduler, with the averaged gradients."""
        run = self._run
        with torch.no_grad():
            run.buffers.apply(mean, present)
        run.gradients.assign(mean, present)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(run.model.parameters(), self.clip_norm)
        run.state.step()
        run.gradients.end()
        run.buffers.remember()

    def measure(self, samples: Sequence[Any]) -> dict[str, Metric]:
        """Run ``evaluate`` on the samples; the state is left as it was.

        Raises:
            TaskError: ``evaluate`` did not return sums and counts.
        """
        run = self._run
        logged, self._logged = self._logged, None
        try:
            with reproducible(), evaluating(run.model), autocast(self.precision):
                returned = self.evaluate(run.model, self.collate(samples))
        finally:
            run.buffers.restore()
            self._logged = logged
        return check_metrics(type(self).__name__, returned)

    def drain_metrics(self) -> dict[str, Metric]:
        logged, self._logged = self._logged, None
        return logged or {}

    def state(self) -> dict[str, Tensor | NDArray[Any]]:
        return {**export_all(self._run.state.tensors())}

    def scalars(self) -> dict[str, Any]:
        return self._run.state.scalars()

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._run.state.load(tensors, scalars)
            self._run.buffers.remember()

    def weights(self) -> dict[str, Tensor | NDArray[Any]]:
        """Return the model's ``state_dict``: ``model.load_state_dict`` takes the file's tensors."""
        return {**export_all(self._state_dict())}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Begin from given weights, of any floating dtype.

        Raises:
            TaskError: names or shapes are not those of the model.
        """
        mine = self._state_dict()
        difference = describe_mismatch(
            {name: tuple(tensor.shape) for name, tensor in mine.items()},
            {name: tensor.shape for name, tensor in weights.items()},
        )
        if difference:
            raise TaskError(f"the weights do not fit model(): {difference}")
        given = {name: create(tensor) for name, tensor in weights.items()}
        # Not strict: a module's extra state is no tensor, and so not in the file.
        self._run.model.load_state_dict(given, strict=False)
        self._run.buffers.remember()

    # --- within ----------------------------------------------------------------------------

    @property
    def _run(self) -> _Training:
        if self._training is None:
            raise TaskError("initialize() must be called before anything else")
        return self._training

    def _loss_sum(self, model: nn.Module, samples: Sequence[Any]) -> torch.Tensor:
        """The sum of the samples' losses: unlike means, sums of ranks simply add up."""
        batch = self.collate(samples)
        with autocast(self.precision):
            loss = self.loss(model, batch)
        check_loss(loss, type(self).__name__)
        wide = torch.promote_types(loss.dtype, torch.float32)
        return loss.reshape(()).to(wide) * len(samples)

    def _state_dict(self) -> dict[str, torch.Tensor]:
        return {
            name: value
            for name, value in self._run.model.state_dict().items()
            if isinstance(value, torch.Tensor)
        }


def _split(samples: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    bounds = [len(samples) * i // parts for i in range(parts + 1)]
    return [samples[a:b] for a, b in pairwise(bounds) if b > a]


def _writable(sample: Any) -> Any:
    """Copy read-only arrays, such as rows of a memory map: torch warns of sharing their memory."""
    if isinstance(sample, np.ndarray):
        return sample if sample.flags.writeable else np.array(sample)
    if type(sample) in (tuple, list):
        return type(sample)(_writable(item) for item in sample)
    if type(sample) is dict:
        return {key: _writable(item) for key, item in sample.items()}
    return sample
