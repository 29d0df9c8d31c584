"""Which plan the next generation runs on, and the function for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from smlt.control.functions import Function, Functions
from smlt.control.supervisor import power_of_two
from smlt.errors import CloudError
from smlt.messages.job import EXACT, JobSpec, ResourcePlan


class Plans:
    """Holds the plan that is wanted until a generation begins with it."""

    def __init__(self, spec: JobSpec, functions: Functions, notice: Callable[[str], None]) -> None:
        self.wanted: ResourcePlan | None = None
        """What the next generation is to have; None leaves it as it is."""
        self._spec = spec
        self._functions = functions
        self._notice = notice

    def want(self, plan: ResourcePlan, held: ResourcePlan) -> bool:
        """Ask for a plan; whether that changes anything.

        Raises:
            ValueError: more workers than virtual ones, or none.
        """
        most = self._spec.virtual_workers
        if not 1 <= plan.workers <= most:
            raise ValueError(f"a plan of {plan.workers} workers, where 1 to {most} can share a job")
        if plan == (self.wanted or held):
            return False
        self.wanted = plan
        return True

    async def take(self, held: ResourcePlan) -> tuple[ResourcePlan, Function]:
        """Return the plan of the generation that begins, and the function that it runs on.

        Raises:
            CloudError: there is none, not even of the size that the job has already.
        """
        held, wanted, self.wanted = self._fitting(held), self.wanted, None
        if wanted is not None:
            wanted = self._fitting(wanted)
            try:
                return wanted, await self._functions.of(wanted.memory_mb)
            except CloudError as error:
                self._notice(f"{error}; going on with {held.memory_mb} MB as before")
                held = replace(wanted, memory_mb=held.memory_mb)
        return held, await self._functions.of(held.memory_mb)

    def _fitting(self, plan: ResourcePlan) -> ResourcePlan:
        workers = power_of_two(plan.workers)
        if self._spec.determinism != EXACT or workers == plan.workers:
            return plan
        self._notice(
            f"exact determinism takes a power of two of workers: {workers} instead of "
            f"{plan.workers} are started"
        )
        return plan.with_workers(workers)
