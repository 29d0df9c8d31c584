"""The plans that a resource manager may choose among."""

from __future__ import annotations

from collections.abc import Mapping

from smlt.control.performance_model import Setting
from smlt.control.search_grid import Dimension, SearchGrid, Value
from smlt.messages import EXACT, JobSpec, ResourcePlan

MEMORY_MB = (884, 1769, 3538, 5307, 7076, 8845, 10_240)
_WORKERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)


def plan_grid(spec: JobSpec, first: ResourcePlan) -> SearchGrid:
    """Return all plans of a job: numbers of workers that divide it well, by sizes of memory."""
    counts = {n for n in _WORKERS if n <= min(spec.most_workers, spec.virtual_workers)}
    if spec.determinism == EXACT:
        counts = {n for n in counts if n & (n - 1) == 0}
    workers = sorted(counts | {first.workers})
    memory = sorted({*MEMORY_MB, first.memory_mb})
    return SearchGrid([Dimension("workers", tuple(workers)), Dimension("memory_mb", tuple(memory))])


def plans_of(grid: SearchGrid) -> list[ResourcePlan]:
    """Return the plans of a grid, by their numbers."""
    return [as_plan(grid.plan(index)) for index in range(len(grid))]


def as_plan(values: Mapping[str, Value]) -> ResourcePlan:
    return ResourcePlan(workers=int(values["workers"]), memory_mb=int(values["memory_mb"]))


def as_setting(plan: ResourcePlan, samples: float = 1.0) -> Setting:
    return Setting(workers=plan.workers, memory_mb=plan.memory_mb, samples=samples)
