"""From what a user asked for to what a job is made of."""

from __future__ import annotations

from typing import Any

from smlt.config import TrainConfig
from smlt.config.sharding import sharding
from smlt.messages import Limits, ResourcePlan

_MB_PER_VCPU = 1769
_FOREVER_S = 1e9


def training_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of a JobSpec that a user sets directly."""
    shard_bytes, aggregators = sharding(
        config.parameters,
        config.workers,
        shard_mb=config.shard_mb,
        aggregators=config.aggregators,
    )
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "steps": config.steps,
        "until": config.until,
        "patience": config.patience,
        "deadline_s": config.deadline,
        "budget_usd": config.budget,
        "keep_best": config.keep_best,
        "virtual_workers": config.streams,
        "shard_bytes": shard_bytes,
        "aggregators": aggregators,
        "determinism": config.determinism,
        "keep_checkpoints": config.keep_checkpoints,
        "limits": _limits(config),
    }


def first_plan(config: TrainConfig) -> ResourcePlan:
    """Return the plan that a job begins with."""
    return ResourcePlan(workers=1 if config.inline else config.workers, memory_mb=config.memory_mb)


def function_environment(memory_mb: int) -> dict[str, str]:
    """Pin, before any library is imported, what changes the bits of a gradient."""
    threads = str(max(1, memory_mb // _MB_PER_VCPU))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}


def _limits(config: TrainConfig) -> Limits:
    if not config.inline:
        return Limits(orphan_s=config.orphan_timeout)
    # In a debugger a rank may stand still for as long as its user likes.
    return Limits(
        lease_s=_FOREVER_S, client_lease_s=_FOREVER_S, orphan_s=_FOREVER_S, function_s=_FOREVER_S
    )
