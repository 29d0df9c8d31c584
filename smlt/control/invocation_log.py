"""What Lambda's log tells of the invocations of one generation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from smlt.control.generation_view import GenerationView
from smlt.control.invocations import Invocation, Invocations
from smlt.control.lambda_client import LambdaService
from smlt.errors import CloudError

logger = logging.getLogger(__name__)

_SETTLE_POLL_S = 0.05


class InvocationLog:
    """Reads a function's log, and knows which invocations have still to be heard of."""

    def __init__(
        self,
        name: str,
        generation: int,
        view: GenerationView,
        *,
        cloud: LambdaService,
        invocations: Invocations,
        clock: Callable[[], float],
    ) -> None:
        """Read the log of a function by its name."""
        self._name = name
        self._generation = generation
        self._view = view
        self._cloud = cloud
        self._invocations = invocations
        self._clock = clock

    async def read(self) -> None:
        """Take in what is new."""
        try:
            events = await self._cloud.log_events(self._name, self._invocations.since_ms())
        except CloudError as error:
            # The log only tells sooner what the leases tell for certain.
            logger.info("%s", error)
        else:
            self._invocations.take(events)

    def ended(self) -> list[Invocation]:
        """Return the invocations of which Lambda has reported the end."""
        return [one for one in self._invocations.of(self._generation) if one.ended]

    async def settle(self, limit_s: float) -> None:
        """Wait until Lambda has reported the end of every invocation that it has begun.

        The bill is then complete, and the environments are free, and warm, for the next
        generation. An event that was lost never ends, and a rank that is replaced stays until
        then.
        """
        give_up = self._clock() + limit_s
        while self._clock() < give_up:
            await self.read()
            sent = self._invocations.of(self._generation)
            there = (i for i in sent if i.rank not in self._view.retired)
            if all(invocation.ended or self._is_lost(invocation) for invocation in there):
                break
            await asyncio.sleep(_SETTLE_POLL_S)
        self._invocations.presume_ended(self._generation, self._is_lost)

    def _is_lost(self, invocation: Invocation) -> bool:
        """Whether an event was never delivered, as far as anybody can tell."""
        return not invocation.started and not self._view.is_rank(invocation)
