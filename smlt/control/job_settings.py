"""From what a user asked for to what a job is made of."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from smlt.config import TrainConfig
from smlt.config.limits import MB_PER_VCPU
from smlt.config.sharding import is_billed, is_open, sharding
from smlt.messages.job import EXACT, Limits, ResourcePlan

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
_FOREVER_S = 1e9
_S3_HEARTBEAT_S = 3.0


def training_settings(config: TrainConfig, cores: int | None) -> dict[str, Any]:
    """Return the fields of a JobSpec that a user sets directly.

    ``cores`` are those that all functions share: this machine's, where they run on it; None in a
    cloud, where each function has its own.
    """
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
        "watches": config.watch,
        "until": config.until,
        "patience": config.patience,
        "deadline_s": config.deadline,
        "budget_usd": config.budget,
        "adapt": config.adapts,
        "most_workers": _most_workers(config, cores),
        "keep_best": config.keep_best,
        "virtual_workers": config.streams,
        "shard_bytes": shard_bytes,
        "aggregators": aggregators,
        "tries_plans": is_open(
            config.parameters, shard_mb=config.shard_mb, aggregators=config.aggregators
        )
        and not config.tune,
        "tunes_aggregators": "aggregators" in config.tune,
        "wire_dtype": config.wire_dtype,
        "tunes_wire_dtype": "wire-dtype" in config.tune,
        "cache_node": config.cache_node,
        "link_mbps": config.link_mbps,
        "determinism": config.determinism,
        "threads": threads_of(config.memory_mb) if config.determinism == EXACT else None,
        "keep_checkpoints": config.keep_checkpoints,
        "checkpoint_s": float(config.checkpoint_every),
        "trace": config.trace,
        "limits": _limits(config),
    }


def first_plan(config: TrainConfig) -> ResourcePlan:
    """Return the plan that a job begins with."""
    workers = 1 if config.inline else config.workers
    aggregators = wire_dtype = None
    if "aggregators" in config.tune:
        _, asked = sharding(
            config.parameters, workers, shard_mb=config.shard_mb, aggregators=config.aggregators
        )
        aggregators = asked or workers
    if "wire-dtype" in config.tune:
        wire_dtype = config.wire_dtype
    return ResourcePlan(
        workers=workers,
        memory_mb=config.memory_mb,
        aggregators=aggregators,
        wire_dtype=wire_dtype,
    )


def threads_of(memory_mb: int) -> int:
    """Return how many threads a function of this size computes with: one for each whole vCPU."""
    return max(1, memory_mb // MB_PER_VCPU)


def function_environment(
    memory_mb: int, threads: int | None = None, architecture: str | None = None
) -> dict[str, str]:
    """Pin, before any library is imported, what changes the bits of a gradient.

    Lambda's fleet is mixed: instructions that every x86-64 host of it has are those that all use.
    ``threads`` are the job's own, whatever the size, where bits must not depend on it; the
    ``architecture`` is by default this machine's.
    """
    count = str(threads or threads_of(memory_mb))
    pins = dict.fromkeys(_THREADS, count)
    is_x86 = (architecture or os.uname().machine) in ("x86_64", "AMD64")
    return pins | _INSTRUCTIONS if is_x86 else pins


def _most_workers(config: TrainConfig, cores: int | None) -> int:
    """Many more functions than the cores that they share would only wait for each other.

    Whoever asks for more by name gets them.
    """
    if config.max_workers is not None or cores is None:
        return config.most_workers
    return min(config.most_workers, max(config.workers, 2 * cores))


def _limits(config: TrainConfig) -> Limits:
    if not config.inline:
        limits = Limits(orphan_s=config.orphan_timeout, function_s=config.function_timeout)
        if is_billed(config.parameters):
            return replace(limits, heartbeat_s=_S3_HEARTBEAT_S, lease_s=5 * _S3_HEARTBEAT_S)
        return limits
    # In a debugger a rank may stand still for as long as its user likes.
    return Limits(
        lease_s=_FOREVER_S, client_lease_s=_FOREVER_S, orphan_s=_FOREVER_S, function_s=_FOREVER_S
    )
