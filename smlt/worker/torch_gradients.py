"""Lets autograd write its gradients straight into the trainer's flat buffer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from smlt.errors import TaskError
from smlt.worker.task import Views
from smlt.worker.torch_tensors import from_view, real


class GradientViews:
    """Sums of gradients in given float32 views, by way of hooks on the parameters.

    While it collects, a float32 parameter's ``grad`` *is* its view, so that backward adds to it in
    place. Parameters of other dtypes or layouts are added when their gradient is complete.
    """

    def __init__(self, model: nn.Module) -> None:
        every = dict(model.named_parameters())
        self._parameters = {name: p for name, p in every.items() if p.requires_grad}
        self._frozen = {name: p for name, p in every.items() if not p.requires_grad}
        self._sums: dict[str, torch.Tensor] = {}
        self._seen: set[str] = set()
        self._sent: set[str] = set()
        self._ready: Callable[[str], None] | None = None
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, name=name: self._accumulated(name)
            )
            for name, parameter in self._parameters.items()
        ]

    def close(self) -> None:
        """Let go of the parameters: other views are to have them."""
        for hook in self._hooks:
            hook.remove()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the views' shapes, in the order of backward: the last layer first."""
        names = reversed(self._parameters)
        return {name: tuple(real(self._parameters[name].detach()).shape) for name in names}

    def begin(self, into: Views) -> None:
        """Collect into these views, which hold zeros, until ``end``."""
        self._sums = {name: torch.from_numpy(into[name]) for name in self._parameters}
        self._seen.clear()
        self._sent.clear()

    def backward(self, loss_sum: torch.Tensor, ready: Callable[[str], None] | None) -> None:
        """Add the gradient of a micro-batch; with ``ready`` it is the last one."""
        self._ready = ready
        # Bound here, not in begin: the user's code may call zero_grad(set_to_none=True).
        for name, parameter in self._parameters.items():
            parameter.grad = self._bindable(name)
        loss_sum.backward()  # type: ignore[no-untyped-call]

    def end(self) -> frozenset[str]:
        """Stop collecting and return the names of the parameters that got no gradient.

        Raises:
            TaskError: a parameter was frozen when the model was made, and is no longer.
        """
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                raise TaskError(
                    f"parameter {name} was frozen in model() and now requires a gradient, but what "
                    "is averaged is settled by then: freeze it by a learning rate of 0 instead"
                )
        self._sums = {}
        self._ready = None
        for parameter in self._parameters.values():
            parameter.grad = None
        return frozenset(self._parameters.keys() - self._seen)

    def assign(self, mean: Views, present: frozenset[str]) -> None:
        """Give each parameter its averaged gradient, or None where no rank had one."""
        for name, parameter in self._parameters.items():
            parameter.grad = from_view(mean[name], parameter) if name in present else None

    def _bindable(self, name: str) -> torch.Tensor | None:
        parameter = self._parameters[name]
        # autograd wants a gradient with its parameter's strides (channels_last has others).
        same = parameter.dtype == torch.float32 and parameter.is_contiguous()
        return self._sums[name] if same else None

    def _accumulated(self, name: str) -> None:
        if name not in self._sums:
            return  # a backward of the user's own, outside a step
        parameter = self._parameters[name]
        if parameter.grad is not None and parameter.grad is not self._sums[name]:
            self._sums[name].add_(real(parameter.grad.to_dense()))
            parameter.grad = self._bindable(name)
        self._seen.add(name)
        if self._ready is None:
            return
        if name in self._sent:
            raise TaskError(
                f"parameter {name} got its gradient in two parts in one backward, as reentrant "
                "checkpointing of shared weights does: call checkpoint(..., use_reentrant=False)"
            )
        self._sent.add(name)
        self._ready(name)
