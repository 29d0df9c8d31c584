"""The modes in which torch runs the user's hooks; each leaves torch as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


@contextmanager
def reproducible() -> Iterator[None]:
    """Have torch take the deterministic one of two algorithms.

    On the CPU this matters once there are two threads: the backward of ``x[index]`` then adds with
    atomics, in any order.
    """
    if torch.are_deterministic_algorithms_enabled():
        yield
        return
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Costs a pass over every new tensor, and helps only code that reads what it never wrote.
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, without gradients."""
    # Module by module: the user may keep some of them in eval mode during training.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward runs in this precision."""
    if precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
