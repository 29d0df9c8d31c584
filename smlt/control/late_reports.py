"""At the end of a job, a moment for the reports of Lambda that the bill still lacks."""

from __future__ import annotations

import asyncio
import logging

from smlt.control.invocations import Invocations
from smlt.control.lambda_client import LambdaService
from smlt.errors import CloudError

logger = logging.getLogger(__name__)

_WAIT_S = 15.0
"""CloudWatch shows a line seconds after it was written."""
_POLL_S = (0.2, 2.0)


async def wait_for_reports(
    cloud: LambdaService, invocations: Invocations, limit_s: float = _WAIT_S
) -> bool:
    """Read logs until every invocation's end is reported; whether that is so within the limit."""
    loop, pause_s = asyncio.get_running_loop(), _POLL_S[0]
    give_up = loop.time() + limit_s
    while missing := invocations.unreported:
        for name in missing:
            try:
                events = await cloud.log_events(name, invocations.late_since_ms)
            except CloudError as error:
                # What was presumed of them stands.
                logger.info("%s", error)
                return False
            invocations.take(events)
        if loop.time() + pause_s > give_up:
            break
        if invocations.unreported:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
    return not invocations.unreported
