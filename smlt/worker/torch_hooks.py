"""What the user's torch hooks return, checked: one sentence says what to do instead."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from smlt.errors import TaskError
from smlt.worker.task import Metric

logger = logging.getLogger(__name__)


def check_settings(task: Any) -> None:
    """Raise TaskError unless precision, accumulate and clip_norm can be used."""
    name = type(task).__name__
    if task.precision not in ("fp32", "bf16"):
        raise TaskError(f'{name}.precision is {task.precision!r}: say "fp32" or "bf16"')
    if not isinstance(task.accumulate, int) or task.accumulate < 1:
        raise TaskError(f"{name}.accumulate is {task.accumulate!r}: say a whole number from 1")
    if task.clip_norm is not None and not task.clip_norm > 0:
        raise TaskError(f"{name}.clip_norm is {task.clip_norm!r}: say a number above 0 or None")


def check_model(model: object, hook: str = "model()") -> nn.Module:
    """Return the model that a hook gave if smlt can train it.

    Raises:
        TaskError: it is no module, not on the CPU, lazy, frozen as a whole, or changes its weights
            in a forward pass.
    """
    if not isinstance(model, nn.Module):
        raise TaskError(f"{hook} returned {type(model).__name__}; it must return an nn.Module")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise TaskError(
                f"parameter {name} of {hook} has no shape yet: run one batch through a lazy "
                "module before returning it"
            )
        if parameter.device.type != "cpu":
            raise TaskError(f"parameter {name} is on {parameter.device}: functions have a CPU only")
    if not any(p.requires_grad for p in parameters.values()):
        raise TaskError(f"{hook} has no parameter that requires a gradient: nothing to train")
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        if module.max_norm is not None:
            raise TaskError(
                f"{name or 'the module'} of {hook} has max_norm, which changes weights in forward "
                "passes, on each rank those of its own samples: take weight decay instead"
            )
        if module.sparse:
            logger.warning("the sparse gradient of %s is made dense to be averaged", name)
    return model


def check_optimizer(optimizer: object, model: nn.Module) -> Optimizer:
    """Return the optimizer if smlt can drive it.

    Raises:
        TaskError: it is none, needs a closure or sparse gradients, or has foreign parameters.
    """
    if not isinstance(optimizer, Optimizer):
        raise TaskError(
            f"optimizer() returned {type(optimizer).__name__}; it must return a "
            "torch.optim.Optimizer over model.parameters()"
        )
    kind = type(optimizer).__name__
    if needed := _required_arguments(optimizer.step):
        raise TaskError(
            f"{kind}.step needs {needed[0]}, which would compute gradients on one rank only: "
            "take an optimizer that steps by itself, such as AdamW"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise TaskError(
            "SparseAdam takes sparse gradients only, and averaged ones are dense: take Adam"
        )
    own = set(model.parameters())
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in own:
                raise TaskError(
                    f"optimizer() holds a parameter of shape {tuple(parameter.shape)} that is "
                    "not in model(): make it part of the module that model() returns"
                )
    return optimizer


def check_scheduler(scheduler: object) -> LRScheduler | None:
    """Return the scheduler if it can be stepped once per step without a metric.

    Raises:
        TaskError: it is none, or its ``step`` needs an argument.
    """
    if scheduler is None:
        return None
    if not isinstance(scheduler, LRScheduler):
        raise TaskError(
            f"scheduler() returned {type(scheduler).__name__}; it must return a "
            "torch.optim.lr_scheduler.LRScheduler or None"
        )
    if needed := _required_arguments(scheduler.step):
        raise TaskError(
            f"{type(scheduler).__name__}.step needs {needed[0]}, but schedulers are stepped after "
            "every step without one: take a schedule of steps, such as OneCycleLR"
        )
    return scheduler


def check_loss(loss: Any, task: str) -> None:
    """Raise TaskError unless the loss is one number with a gradient."""
    where = f"loss() of {task}"
    if not isinstance(loss, torch.Tensor):
        raise TaskError(
            f"{where} returned {type(loss).__name__}: return the tensor, without .item()"
        )
    if loss.numel() != 1:
        raise TaskError(
            f"{where} returned a tensor of shape {tuple(loss.shape)}: return one number, the "
            "mean over the batch, with .mean()"
        )
    if not loss.requires_grad:
        raise TaskError(
            f"{where} returned a tensor without gradient: compute it from the model's output, "
            "without .detach(), .item() or torch.no_grad()"
        )


def check_metrics(task: str, returned: Any) -> dict[str, Metric]:
    """Return what ``evaluate`` returned, as plain numbers, or raise TaskError."""
    try:
        return {
            str(name): Metric(float(total), float(count))
            for name, (total, count) in returned.items()
        }
    except (AttributeError, TypeError, ValueError, RuntimeError) as exc:
        raise TaskError(
            f"evaluate() of {task} must return a dict of (sum, count) by metric, such as "
            f'{{"accuracy": (correct.sum(), len(y))}}: {exc}'
        ) from exc


def _required_arguments(method: Any) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
