"""A rank's part in comparing states while it trains."""

from __future__ import annotations

from smlt.aggregation.metric_sums import Metrics
from smlt.worker import divergence
from smlt.worker.divergence import DivergedError
from smlt.worker.generation import Generation
from smlt.worker.host import Compute
from smlt.worker.task import Task

# So long may ranks take to tell where they differ.
_DIGESTS_S = 5.0


class DivergenceWatch:
    """Gives this rank's digest to a step, and looks at those of all ranks in its means."""

    def __init__(
        self, generation: Generation, task: Task, rank: int, ranks: int, *, every: int
    ) -> None:
        """Compare every so many training steps; 0 is never."""
        self._generation = generation
        self._task = task
        self._rank, self._ranks = rank, ranks
        self._every = every
        self._equal_at: int | None = None

    def own(self, trained: int) -> Metrics:
        """Return this rank's digest of the state after so many steps, where it is compared."""
        if self._ranks == 1 or not self._every or trained % self._every:
            return {}
        if not divergence.is_asked(self._rank, self._ranks, trained // self._every):
            return {}
        return divergence.as_metric(self._rank, divergence.digests_of(self._task))

    async def compare(self, trained: int, metrics: Metrics, compute: Compute) -> None:
        """Take the ranks' digests out of a step's metrics; nothing is raised if they are equal.

        Raises:
            DivergedError: they are not, which all ranks find alike; it says where.
            SmltError: the generation was aborted meanwhile.
        """
        held = divergence.take_from(metrics)
        if len(set(held.values())) <= 1:
            self._equal_at = trained if held else self._equal_at
            return
        generation = self._generation
        await generation.tell_digests(await compute(divergence.digests_of, self._task))
        give_up = generation.clock() + _DIGESTS_S
        while len(generation.digests) < self._ranks and generation.clock() < give_up:
            await generation.next_news(_DIGESTS_S)
        where = divergence.describe(generation.digests, self._ranks)
        since = "the start" if self._equal_at is None else f"step {self._equal_at}"
        raise DivergedError(
            f"{where}, after step {trained}: a worker's memory was damaged, or the task "
            f"depends on its rank; they were last seen equal at {since}"
        )
