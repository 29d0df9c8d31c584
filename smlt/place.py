"""Where a job runs: a Lambda service, and the parameter store as its workers reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from smlt.control.lambda_client import Endpoint, LambdaService, lambda_client
from smlt.control.run_folder import RunFolder
from smlt.embedded.cloud import EmbeddedCloud
from smlt.embedded.running_cloud import RunningCloud
from smlt.errors import UserError
from smlt.inline import InlineCloud

# Longer than it takes the workers to notice that the client is gone, and to save.
LINGER_S = 20.0
_SAVING_S = 15.0


@dataclass(frozen=True, slots=True)
class Place:
    """An open cloud."""

    cloud: LambdaService
    parameters: str
    notices: Sequence[str] = ()
    ended: Callable[[], Awaitable[str]] | None = None
    """Waits for the service's own untimely end, and says how it came."""


@asynccontextmanager
async def inline_place(
    code_root: Path, job_id: str, parameters: str | None
) -> AsyncIterator[Place]:
    """Open a cloud of one rank in this very process."""
    async with InlineCloud(code_root) as cloud:
        yield Place(cloud, parameters or f"memory://{job_id}")


@asynccontextmanager
async def embedded_place(
    run_dir: Path,
    folder: RunFolder,
    parameters: str | None,
    orphan_s: float,
    chaos: int | None = None,
) -> AsyncIterator[Place]:
    """Start a cloud on this machine, which outlives its client as long as workers wait for one."""
    embedded = EmbeddedCloud(
        folder.cloud,
        parameter_store=parameters is None,
        linger_s=max(LINGER_S, orphan_s + _SAVING_S),
        visible=[run_dir],
        chaos=chaos,
    )
    async with embedded, lambda_client(_endpoint(embedded.endpoint)) as cloud:
        url = parameters or str(embedded.parameters)
        yield Place(cloud, url, embedded.notices, embedded.ended)


@asynccontextmanager
async def left_place(
    run_dir: Path, folder: RunFolder, parameters: str | None, orphan_s: float
) -> AsyncIterator[Place]:
    """Go on with the cloud that an earlier client has left, or start one where none is left."""
    left = await RunningCloud.find(folder.cloud, hold_s=LINGER_S)
    if left is None:
        async with embedded_place(run_dir, folder, parameters, orphan_s) as place:
            yield place
        return
    async with left, lambda_client(_endpoint(left.endpoint)) as cloud:
        url = parameters or left.parameters
        if url is None:
            raise UserError(
                "The job's parameter store is a server that was given with --parameters: "
                "give its URL again."
            )
        yield Place(cloud, url, (), left.ended)


def _endpoint(url: str) -> Endpoint:
    return Endpoint(url=url, access_key="local", secret_key="local")
