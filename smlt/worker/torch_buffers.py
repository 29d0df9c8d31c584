"""A module's buffers (running statistics, counters, masks): how ranks agree on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from smlt.errors import TaskError
from smlt.worker.task import Views
from smlt.worker.torch_tensors import real

PREFIX = "buffer:"


@dataclass(slots=True)
class _Buffer:
    owner: nn.Module
    attribute: str
    tensor: torch.Tensor
    start: torch.Tensor
    delta: torch.Tensor
    """Sum, over the micro-batches, of change times samples; of the dtype in which it is exact."""
    persistent: bool


class BufferAverager:
    """Averages what a step changes in the buffers, as deltas weighted by samples.

    Deltas, because what no rank changed must keep its bits. A value that was infinite at the start
    (an observer's minimum, say) has no delta: its new value is sent instead. Counters advance once
    per step: the mean delta is rounded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, dict(module._buffers)) for module in model.modules()]
        shared = {parameter.data_ptr() for parameter in model.parameters()} - {0}
        persistent = model.state_dict().keys()
        self._buffers: dict[str, _Buffer] = {}
        for path, tensor in model.named_buffers():
            if tensor.data_ptr() in shared:
                continue  # it moves with its parameter
            owner, _, attribute = path.rpartition(".")
            start = tensor.detach().clone()
            delta = torch.zeros_like(_wide(real(start)), memory_format=torch.contiguous_format)
            self._buffers[PREFIX + path] = _Buffer(
                model.get_submodule(owner), attribute, tensor, start, delta, path in persistent
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(buffer.delta.shape) for name, buffer in self._buffers.items()}

    @torch.no_grad()
    def remember(self) -> None:
        """Take the buffers' present values as those of the step's start."""
        for buffer in self._buffers.values():
            buffer.start.copy_(buffer.tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring back the values of the step's start, in the tensors that held them then."""
        for module, buffers in self._modules:
            # Some modules replace a buffer by a new tensor instead of writing into it, or make one.
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer in self._buffers.values():
            buffer.tensor.copy_(buffer.start)

    def begin(self) -> None:
        for buffer in self._buffers.values():
            buffer.delta.zero_()

    @torch.no_grad()
    def collect(self, samples: int) -> None:
        """Add what a micro-batch of so many samples has changed.

        Raises:
            TaskError: a buffer has another shape than before, or is new.
        """
        for module, buffers in self._modules:
            for name, tensor in module._buffers.items():
                is_new = tensor is not None and buffers.get(name) is None
                if is_new and name not in module._non_persistent_buffers_set:
                    raise TaskError(
                        f"the buffer {name} of {type(module).__name__} came in a training step: "
                        "give it its shape in model(), or register it with persistent=False"
                    )
        for name, buffer in self._buffers.items():
            now = getattr(buffer.owner, buffer.attribute)
            if now is None or now.shape != buffer.start.shape:
                if not buffer.persistent:
                    continue  # a cache that was made anew: it goes with the step
                raise TaskError(
                    f"{name.removeprefix(PREFIX)} changed its shape in a training step: a "
                    "buffer that grows cannot be averaged; register it with persistent=False"
                )
            if not torch.equal(now, buffer.start):
                buffer.delta.add_(_delta(buffer.start, now), alpha=samples)

    @torch.no_grad()
    def write(self, into: Views, ready: Callable[[str], None]) -> frozenset[str]:
        """Write the collected sums into the views; return the names of unchanged buffers."""
        absent = set()
        for name, buffer in self._buffers.items():
            if buffer.delta.count_nonzero() == 0:
                absent.add(name)
            else:
                torch.from_numpy(into[name]).copy_(buffer.delta)
            ready(name)
        return frozenset(absent)

    @torch.no_grad()
    def apply(self, mean: Views, present: frozenset[str]) -> None:
        """Restore the step's start, then add the mean deltas to it."""
        self.restore()
        for name, buffer in self._buffers.items():
            if name in present:
                _advance(buffer, mean[name])


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 for 64- and 32-bit and integer types, else in float32."""
    narrow = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to(torch.float32 if narrow else torch.float64)


def _delta(start: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    before, after = _wide(real(start)), _wide(real(now))
    same = (before == after) | (before.isnan() & after.isnan())
    base = torch.where(before.isfinite(), before, 0.0)
    return torch.where(same, 0.0, after - base)


def _advance(buffer: _Buffer, mean: NDArray[np.float32]) -> None:
    change = torch.from_numpy(mean).to(buffer.delta.dtype)
    target = real(buffer.tensor)
    before = _wide(target)
    after = torch.where(before.isfinite(), before, 0.0) + change
    if not target.is_floating_point():
        after = after.round()
    # Where nothing changed the bits stay: widening a 64-bit integer may round it.
    target.copy_(torch.where(change == 0, target, after.to(target.dtype)))
