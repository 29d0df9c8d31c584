"""The plans that a resource manager may choose among."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from smlt.control.search_grid import Dimension, Plan, SearchGrid, Value
from smlt.control.step_cost import wire_share
from smlt.control.step_measurement import Setting
from smlt.messages.job import EXACT, JobSpec, ResourcePlan

MEMORY_MB = (884, 1769, 3538, 5307, 7076, 8845, 10_240)
_WORKERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
# By their share of all ranks, aggregators act much alike whatever the number of workers.
_OWNERS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
# fp16 sends as many bytes as bf16, with less of a range: only who asks for it gets it.
_WIRE_DTYPES = ("fp32", "bf16")


def plan_grid(spec: JobSpec, first: ResourcePlan) -> SearchGrid:
    """Return all plans of a job: numbers of workers that divide it well, by sizes of memory.

    Aggregators and the wire dtype are varied, too, where the job's spec tunes them.
    """
    counts = {n for n in _WORKERS if n <= min(spec.most_workers, spec.virtual_workers)}
    if spec.determinism == EXACT:
        counts = {n for n in counts if n & (n - 1) == 0}
    workers = sorted(counts | {first.workers})
    memory = sorted({*MEMORY_MB, first.memory_mb})
    dimensions = [Dimension("workers", tuple(workers)), Dimension("memory_mb", tuple(memory))]
    shares: tuple[float, ...] = ()
    if spec.tunes_aggregators:
        shares = tuple(sorted({*_OWNERS, (first.aggregators or first.workers) / first.workers}))
        dimensions.append(Dimension("owners", shares))
    if spec.tunes_wire_dtype:
        dtypes = dict.fromkeys((*_WIRE_DTYPES, first.wire_dtype or spec.wire_dtype))
        dimensions.append(Dimension("wire_dtype", tuple(dtypes)))
    return SearchGrid(dimensions, partial(_is_of_its_own, shares, first))


def plans_of(grid: SearchGrid) -> list[ResourcePlan]:
    """Return the plans of a grid, by their numbers."""
    return [as_plan(grid.plan(index)) for index in range(len(grid))]


def as_plan(values: Mapping[str, Value]) -> ResourcePlan:
    workers = int(values["workers"])
    return ResourcePlan(
        workers=workers,
        memory_mb=int(values["memory_mb"]),
        aggregators=_aggregators(workers, values["owners"]) if "owners" in values else None,
        wire_dtype=str(values["wire_dtype"]) if "wire_dtype" in values else None,
    )


def as_setting(
    plan: ResourcePlan, samples: float = 1.0, gradient_bytes: float | None = None
) -> Setting:
    """Return what the performance model knows of a plan.

    Args:
        plan: of which it is to tell the time of a step.
        samples: of a step, over all workers.
        gradient_bytes: of the model in float32; None where that does not matter.
    """
    return Setting(
        workers=plan.workers,
        memory_mb=plan.memory_mb,
        aggregators=plan.aggregators,
        samples=samples,
        wire_bytes=gradient_bytes,
        wire_share=wire_share(plan.wire_dtype),
    )


def _aggregators(workers: int, share: Value) -> int:
    return math.ceil(round(workers * float(share), 6))


def _is_of_its_own(shares: tuple[float, ...], first: ResourcePlan, values: Plan) -> bool:
    """Whether no other plan is the same: one worker sends nothing, a few have few owners."""
    plan = as_plan(values)
    if plan.workers == 1 and plan.wire_dtype not in (None, "fp32") and plan != first:
        return False
    larger = [more for more in shares if more > float(values["owners"])]
    return all(_aggregators(plan.workers, more) != plan.aggregators for more in larger)
