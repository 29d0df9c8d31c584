"""All that a training step depends on, out of torch objects and into them again, bit for bit.

``Optimizer.load_state_dict`` casts state to its parameter's dtype and aliases what it is given;
so state is taken and put back by hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from smlt.errors import CheckpointError, TaskError
from smlt.io.tensor import Tensor
from smlt.worker.plain_state import decode, encode
from smlt.worker.task import describe_mismatch
from smlt.worker.torch_tensors import create, export, overwrite

MODEL = "model:"
OPTIMIZER = "optimizer:"


@dataclass(frozen=True, slots=True)
class Kept:
    """What an optimizer and a scheduler know, apart from the model that they knew it of."""

    shapes: dict[str, tuple[int, ...]]
    """Of the parameters."""
    states: dict[str, dict[str, Any]]
    """By parameter."""
    groups: list[dict[str, Any]]
    scheduler: dict[str, Any] | None
    steps: int


class TorchState:
    """Model, buffers, optimizer and scheduler as named tensors and JSON-able scalars."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        total_steps: int | None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._total_steps = total_steps
        self._steps = 0
        self._names: dict[Any, str] = {p: name for name, p in model.named_parameters()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the state, live."""
        return dict(self._model_tensors()) | self._split()[0]

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state as strict JSON."""
        return self._split()[1]

    def step(self) -> None:
        """Take a step of the optimizer and of the scheduler."""
        self._optimizer.step()
        self._steps += 1
        if self._scheduler is not None:
            self._scheduler.step()

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take over a state, creating the optimizer's where it does not exist yet.

        A scheduler of a job that has become longer, or shorter, since goes on as if the job had
        always been so long.

        Raises:
            CheckpointError: the state is of another model or another optimizer.
        """
        mine = dict(self._model_tensors())
        difference = describe_mismatch(
            {name: tuple(tensor.shape) for name, tensor in mine.items()},
            {name: tensor.shape for name, tensor in tensors.items() if name.startswith(MODEL)},
        )
        if difference:
            raise CheckpointError(f"the saved state is that of another model: {difference}")
        for name, tensor in mine.items():
            overwrite(tensor, tensors[name])
        loaded = {n: create(t) for n, t in tensors.items() if not n.startswith(MODEL)}
        scheduler = decode(scalars["scheduler"], loaded)
        # The first checkpoints of this version counted no steps.
        self._steps = scalars.get("steps", (scheduler or {}).get("last_epoch", 0))
        if self._scheduler is None or scalars.get("total_steps", self._total_steps) == (
            self._total_steps
        ):
            self._load_optimizer(decode(scalars["optimizer"], loaded), loaded)
            self._load_scheduler(scheduler)
        else:
            rates = self._scheduled(self._scheduler)
            self._load_optimizer(decode(scalars["optimizer"], loaded), loaded)
            for group, values in zip(self._optimizer.param_groups, rates, strict=True):
                group.update(values)
        for path, extra in decode(scalars["extra"], loaded).items():
            self._model.get_submodule(path).set_extra_state(extra)

    def kept(self) -> Kept:
        """Return what another model's optimizer and scheduler may go on with."""
        return Kept(
            {name: tuple(parameter.shape) for parameter, name in self._names.items()},
            {self._names[p]: values for p, values in self._optimizer.state.items()},
            self._groups(),
            None if self._scheduler is None else self._scheduler.state_dict(),
            self._steps,
        )

    def take_over(self, kept: Kept) -> None:
        """Go on with what was known of parameters of the same names and shapes.

        Raises:
            TaskError: the optimizer has other groups than before, or the scheduler came or went.
        """
        groups, self._steps = self._optimizer.param_groups, kept.steps
        if len(groups) != len(kept.groups) or (kept.scheduler is None) != (self._scheduler is None):
            raise TaskError(
                "optimizer() and scheduler() have to return as many parameter groups, and a "
                "scheduler or none, for the grown model as for the one before it"
            )
        for group, values in zip(groups, kept.groups, strict=True):
            group.update(values)
        for parameter, name in self._names.items():
            if name in kept.states and kept.shapes[name] == tuple(parameter.shape):
                self._optimizer.state[parameter] = kept.states[name]
        if self._scheduler is not None and kept.scheduler is not None:
            self._scheduler.load_state_dict(kept.scheduler)

    def _groups(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in group.items() if key != "params"}
            for group in self._optimizer.param_groups
        ]

    def _model_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._model.named_parameters():
            yield MODEL + name, parameter
        for name, buffer in self._model.named_buffers():
            yield MODEL + name, buffer

    def _split(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors: dict[str, torch.Tensor] = {}
        state: dict[str, Any] = {}
        for key, values in self._optimizer.state.items():
            name = self._names.get(key)
            if name is None:
                raise TaskError(
                    f"the optimizer keeps state under {key!r}, which is no parameter of model(): "
                    "a checkpoint could not bring it back"
                )
            prefix = f"{OPTIMIZER}{name}:"
            tensors |= {prefix + k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
            rest = {k: v for k, v in values.items() if not isinstance(v, torch.Tensor)}
            state[name] = encode(rest, f"state:{name}", tensors)
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return tensors, {
            "optimizer": {"groups": encode(self._groups(), "groups", tensors), "state": state},
            "scheduler": encode(scheduler, "scheduler", tensors),
            "extra": encode(self._extra_state(), "extra", tensors),
            "steps": self._steps,
            "total_steps": self._total_steps,
        }

    def _extra_state(self) -> dict[str, Any]:
        return {
            path: module.get_extra_state()
            for path, module in self._model.named_modules()
            if type(module).get_extra_state is not nn.Module.get_extra_state
        }

    def _load_optimizer(self, saved: Any, loaded: Mapping[str, torch.Tensor]) -> None:
        groups = self._optimizer.param_groups
        if len(groups) != len(saved["groups"]):
            raise CheckpointError(
                f"the saved optimizer has {len(saved['groups'])} parameter groups, but "
                f"optimizer() makes {len(groups)}"
            )
        for group, values in zip(groups, saved["groups"], strict=True):
            group.update(values)
        parameters = {name: parameter for parameter, name in self._names.items()}
        self._optimizer.state.clear()
        for name, values in saved["state"].items():
            if name not in parameters:
                raise CheckpointError(f"the saved optimizer has state for {name}, unknown here")
            self._optimizer.state[parameters[name]] = values
        for path, tensor in loaded.items():
            if path.startswith(OPTIMIZER):
                name, _, key = path.removeprefix(OPTIMIZER).rpartition(":")
                self._optimizer.state[parameters[name]][key] = tensor

    def _scheduled(self, scheduler: LRScheduler) -> list[dict[str, Any]]:
        """Bring a new scheduler to the present step; return what its groups have come to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer takes no steps
            for _ in range(self._steps):
                scheduler.step()
        return self._groups()

    def _load_scheduler(self, saved: Any) -> None:
        if (saved is None) != (self._scheduler is None):
            had, has = ("had no", "makes one") if saved is None else ("had a", "makes none")
            raise CheckpointError(f"the saved state {had} scheduler, but scheduler() {has}")
        if self._scheduler is not None:
            self._scheduler.load_state_dict(saved)


def export_all(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensor]:
    return {name: export(name, tensor) for name, tensor in tensors.items()}
