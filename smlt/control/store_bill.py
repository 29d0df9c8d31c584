"""What a job's stores cost beside its functions: hours of nodes, and requests and bytes of S3.

Requests are counted by what a step, a generation and a lease take, for workers make most of them:
an estimate, as the functions' bill is until Lambda has reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from smlt.control.cost_model import S3Class, s3_class, s3_cost
from smlt.control.step_cost import StepCost
from smlt.messages.job import JobSpec, ResourcePlan

RENEWALS = 4  # of the lease on the job, within the time after which it is free
_OF_A_RANK = (
    2,
    4,
)  # puts and gets: its part, and the last's manifest; job, manifest, data and part
_OF_A_GENERATION = (3, 6)  # of the client: drawing, ending; looking for what was saved


class StoreBill:
    """Counts what one client of a job has had its stores do."""

    def __init__(
        self,
        spec: JobSpec,
        cost: StepCost,
        objects_url: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count; ``cost`` tells what the parameter store is.

        Raises:
            ConfigError: there is no price of one of the stores.
        """
        self._spec = spec
        self._cost = cost
        self._objects: S3Class | None = s3_class(objects_url)
        self._clock = clock
        self._began = clock()
        self._moved_usd = 0.0
        self._puts = self._gets = 0
        self._asked_usd = 0.0
        self._plan: ResourcePlan | None = None
        self._since = self._began
        replace(cost, gradient_bytes=1).moving(ResourcePlan(workers=2, memory_mb=1769))
        cost.store.per_second(1, cost.prices)
        if self._objects is not None:
            s3_cost(self._objects, prices=cost.prices)

    def carries(self, gradient_bytes: int, plan: ResourcePlan) -> None:
        """A generation of that plan has begun to exchange gradients of that size."""
        self._asked_usd, self._since = self._present_usd(), self._clock()
        self._plan = plan
        self._cost = replace(self._cost, gradient_bytes=gradient_bytes)
        for each, count in ((_OF_A_GENERATION, 1), (_OF_A_RANK, plan.workers)):
            self._puts += each[0] * count
            self._gets += each[1] * count

    def step(self, plan: ResourcePlan) -> None:
        """The workers of a plan have taken a step."""
        self._moved_usd += self._cost.moving(plan)

    @property
    def usd(self) -> float:
        """All of it so far, in US dollars."""
        seconds, prices = self._clock() - self._began, self._cost.prices
        usd = self._moved_usd + self._present_usd()
        if self._objects is None:
            return usd
        renewed = seconds * RENEWALS / self._spec.limits.hold_s
        return usd + s3_cost(
            self._objects, puts=self._puts + renewed, gets=self._gets, prices=prices
        )

    def _present_usd(self) -> float:
        """What the parameter store costs for being there, with workers who look into it."""
        workers = 0 if self._plan is None else self._plan.workers
        per_second = self._cost.store.per_second(workers, self._cost.prices)
        return self._asked_usd + (self._clock() - self._since) * per_second
