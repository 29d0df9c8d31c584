"""What may be changed in a job that goes on: how much of it, and on how many functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from smlt.config.limits import CONCURRENCY_LIMIT, MEMORY_MB, WIRE_DTYPES
from smlt.config.sources import flag
from smlt.config.values import Duration, shown, typed
from smlt.errors import ConfigError
from smlt.messages.job import EXACT, JobSpec, ResourcePlan

_KINDS = {
    "workers": int,
    "memory_mb": int,
    "aggregators": int,
    "wire_dtype": str,
    "epochs": int,
    "steps": int,
    "deadline": Duration,
    "budget": float,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeConfig:
    """The options of ``smlt resume``; None leaves a setting as the job has it."""

    workers: int | None = None
    memory_mb: int | None = None
    aggregators: int | None = None
    wire_dtype: str | None = None
    epochs: int | None = None
    steps: int | None = None
    deadline: Duration | None = None
    """Seconds from the job's first start, as its budget is for the whole of it."""
    budget: float | None = None
    pause_after: int | None = None
    """Epochs after which it is to stop again."""

    @classmethod
    def load(cls, arguments: Mapping[str, Any]) -> Self:
        """Read the texts of a command line.

        Raises:
            ConfigError: one of them cannot be used.
        """
        given = {name: arguments[name] for name in _KINDS if arguments.get(name) is not None}
        config = cls(
            **{name: typed(value, _KINDS[name], flag(name)) for name, value in given.items()}
        )
        for name in given:
            if _KINDS[name] in (Duration, float) and getattr(config, name) <= 0:
                raise _refused(name, getattr(config, name), "give more than 0.")
            if _KINDS[name] is int and getattr(config, name) < 1:
                raise _refused(name, getattr(config, name), "give a whole number of at least 1.")
        if config.wire_dtype not in (None, *WIRE_DTYPES):
            raise _refused("wire_dtype", config.wire_dtype, "write fp32, bf16 or fp16.")
        low, high = MEMORY_MB
        if config.memory_mb is not None and not low <= config.memory_mb <= high:
            raise _refused("memory_mb", config.memory_mb, f"Lambda offers {low} to {high:,} MB.")
        return config

    @property
    def is_longer(self) -> bool:
        """Whether another end was asked for."""
        return self.epochs is not None or self.steps is not None

    def is_further(self, spec: JobSpec, trained: int | None) -> bool:
        """Whether a job that is complete, after so many steps, has anything left to do then."""
        if self.steps is not None:
            return trained is None or self.steps > trained
        ends_early = spec.until is not None or spec.patience is not None
        return ends_early or spec.epochs is None or (self.epochs or 0) > spec.epochs

    def spec(self, spec: JobSpec) -> JobSpec:
        """Return what the job is now to do; a new end replaces the old one, whatever its kind."""
        spec = replace(spec, pause_after=self.pause_after)
        if self.deadline is not None:
            spec = replace(spec, deadline_s=self.deadline)
        if self.budget is not None:
            spec = replace(spec, budget_usd=self.budget)
        if not self.is_longer:
            return spec
        return replace(spec, epochs=self.epochs, steps=self.steps)

    def plan(self, plan: ResourcePlan, spec: JobSpec) -> ResourcePlan:
        """Return the functions that the job is now to have.

        Raises:
            ConfigError: the job cannot be shared by so many.
        """
        workers = self.workers or plan.workers
        most = min(spec.virtual_workers, CONCURRENCY_LIMIT)
        if workers > most:
            raise _refused("workers", workers, f"the job has data for {most} workers at most.")
        if spec.aggregators is not None and workers < spec.aggregators:
            raise _refused("workers", workers, f"the job has {spec.aggregators} aggregators.")
        if (self.aggregators or 1) > workers:
            raise _refused("aggregators", self.aggregators or 1, f"there are {workers} workers.")
        if spec.determinism == EXACT and self.wire_dtype not in (None, "fp32"):
            raise _refused("wire_dtype", self.wire_dtype, "the job's bits are to be exact.")
        same = plan.with_workers(workers)
        return replace(
            same,
            memory_mb=self.memory_mb or plan.memory_mb,
            aggregators=self.aggregators or same.aggregators,
            wire_dtype=self.wire_dtype or same.wire_dtype,
        )


def _refused(name: str, value: float | str, why: str) -> ConfigError:
    return ConfigError(f"{flag(name)} is {shown(value)}: {why}")
