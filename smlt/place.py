"""Where a job runs: a Lambda service, and the parameter store as its workers reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smlt.aws.api import open_api
from smlt.aws.deployment import WORKER_S, Deployment
from smlt.aws.package import Package
from smlt.aws.release import Release
from smlt.config.sharding import is_billed
from smlt.control.artifact_manager import HANDLER, python_runtime
from smlt.control.bill import PLAIN, FunctionKind
from smlt.control.functions import Function
from smlt.control.gateway_store import GatewayStore
from smlt.control.job_settings import function_environment
from smlt.control.lambda_client import Endpoint, LambdaClient, LambdaService, lambda_client
from smlt.control.run_folder import RunFolder
from smlt.embedded.cloud import EmbeddedCloud
from smlt.embedded.running_cloud import RunningCloud
from smlt.errors import StoreUnreachableError, UserError
from smlt.inline import InlineCloud
from smlt.io.parameter_store import ControlStore
from smlt.io.stores import open_parameter_store
from smlt.messages.job import JobSpec

# Longer than it takes the workers to notice that the client is gone, and to save.
LINGER_S = 20.0
_SAVING_S = 15.0
# A server that answers at all answers within this.
REACH_S = 3.0
# For a function that has to start, in a private network, the same.
_REACH_FROM_THERE_S = 20.0

Billed = Callable[[int, int], None]
"""Hears of a call's billed milliseconds, and of the function's memory in MB."""


@dataclass(frozen=True, slots=True)
class Place:
    """An open cloud."""

    cloud: LambdaService
    parameters: str
    make: Callable[[int], Awaitable[Function]]
    """Makes the function of a size of memory, in MB."""
    kind: FunctionKind = PLAIN
    notices: Sequence[str] = ()
    ended: Callable[[], Awaitable[str]] | None = None
    """Waits for the service's own untimely end, and says how it came."""
    way: Callable[[float, Billed], ControlStore] | None = None
    """Opens the parameter store where this process cannot reach it by itself."""

    def open_store(self, time_limit_s: float, billed: Billed) -> ControlStore:
        """Open the parameter store as the job's client uses it."""
        if self.way is not None:
            return self.way(time_limit_s, billed)
        return open_parameter_store(self.parameters, time_limit_s=time_limit_s)


async def check_server(url: str) -> None:
    """Find out before anything is started that the server cannot be reached, and soon."""
    async with open_parameter_store(url, time_limit_s=REACH_S) as store:
        await store.discard(["smlt"])  # of several servers, it asks each


async def reaches(url: str) -> bool:
    """Whether the server can be reached from here; one that refuses us is an error as ever."""
    try:
        await check_server(url)
    except StoreUnreachableError:
        return False
    return True


@asynccontextmanager
async def inline_place(
    code_root: Path, job_id: str, parameters: str | None
) -> AsyncIterator[Place]:
    """Open a cloud of one rank in this very process."""

    async def make(memory_mb: int) -> Function:
        return Function(name="inline", version="1", memory_mb=memory_mb)

    async with InlineCloud(code_root) as cloud:
        yield Place(cloud, parameters or f"memory://{job_id}", make)


@asynccontextmanager
async def embedded_place(
    run_dir: Path,
    folder: RunFolder,
    spec: JobSpec,
    package: bytes,
    parameters: str | None,
    chaos: int | None = None,
) -> AsyncIterator[Place]:
    """Start a cloud on this machine, which outlives its client as long as workers wait for one."""
    embedded = EmbeddedCloud(
        folder.cloud,
        parameter_store=parameters is None,
        linger_s=max(LINGER_S, spec.limits.orphan_s + _SAVING_S),
        visible=[run_dir],
        chaos=chaos,
    )
    async with embedded, lambda_client(_endpoint(embedded.endpoint)) as cloud:
        url = parameters or str(embedded.parameters)
        make = _maker(cloud, spec, package)
        yield Place(cloud, url, make, notices=embedded.notices, ended=embedded.ended)


@asynccontextmanager
async def left_place(
    run_dir: Path, folder: RunFolder, spec: JobSpec, package: bytes, parameters: str | None
) -> AsyncIterator[Place]:
    """Go on with the cloud that an earlier client has left, or start one where none is left."""
    left = await RunningCloud.find(folder.cloud, hold_s=LINGER_S)
    if left is None:
        async with embedded_place(run_dir, folder, spec, package, parameters) as place:
            yield place
        return
    async with left, lambda_client(_endpoint(left.endpoint)) as cloud:
        url = parameters or left.parameters
        if url is None:
            raise UserError(
                "The job's parameter store is a server that was given with --parameters: "
                "give its URL again."
            )
        yield Place(cloud, url, _maker(cloud, spec, package), ended=left.ended)


@asynccontextmanager
async def aws_place(
    release: Release,
    spec: JobSpec,
    parameters: str,
    *,
    is_near: bool,
    package: Package | None = None,
) -> AsyncIterator[Place]:
    """Open AWS: the functions of a release are made, or found, in the user's account.

    ``is_near`` says whether the parameter store can be reached from here; if not, a function is
    the way to it. Only with the package can an image be made that is not there.
    """
    async with open_api(release.region) as api:
        deployment = await Deployment.open(api, release, package)
        kind = FunctionKind(
            region=str(deployment.release.region),
            architecture="arm64" if release.architecture == "arm64" else "x86_64",
            ephemeral_mb=release.ephemeral_mb,
        )

        timeout_s = int(min(spec.limits.function_s, WORKER_S))

        async def make(memory_mb: int) -> Function:
            return await deployment.function(memory_mb, spec.threads, timeout_s)

        unpriced = _unpriced(spec, parameters)
        async with lambda_client(Endpoint(region=deployment.release.region)) as cloud:
            if is_near:
                yield Place(cloud, parameters, make, kind, unpriced)
                return
            function = await deployment.gateway()
            notice = (
                "the parameter store cannot be reached from here: the job is followed through the "
                f"function {function.name}"
            )
            early: list[tuple[int, int]] = []
            way = partial(_through, cloud, function, parameters, early)
            await _check_way(way, lambda *call: early.append(call))
            yield Place(cloud, parameters, make, kind, (*unpriced, notice), way=way)


def _unpriced(spec: JobSpec, parameters: str) -> Sequence[str]:
    """Say that a server's hours are not counted, if they are not."""
    if spec.cache_node is not None or is_billed(parameters):
        return ()
    return ("the parameter store is taken to cost nothing: --cache-node TYPE counts its hours",)


async def _check_way(way: Callable[[float, Billed], ControlStore], billed: Billed) -> None:
    try:
        async with way(_REACH_FROM_THERE_S, billed) as store:
            await store.discard(["smlt"])
    except StoreUnreachableError as exc:
        raise StoreUnreachableError(
            f"neither this machine nor a function reaches the parameter store ({exc}): name its "
            "network with subnets and security_groups in [aws], and let these reach its port"
        ) from exc


def _through(
    cloud: LambdaClient,
    function: Function,
    url: str,
    early: list[tuple[int, int]],
    time_limit_s: float,
    billed: Billed,
) -> GatewayStore:
    """Open the way; calls that came before there was a bill go onto the first one."""
    while early:
        billed(*early.pop())
    return GatewayStore(
        url,
        partial(cloud.call, function.name, function.version),
        time_limit_s=time_limit_s,
        billed=lambda billed_ms: billed(billed_ms, function.memory_mb),
    )


def _endpoint(url: str) -> Endpoint:
    return Endpoint(url=url, region="us-east-1", access_key="local", secret_key="local")


def _maker(
    cloud: LambdaClient, spec: JobSpec, package: bytes
) -> Callable[[int], Awaitable[Function]]:
    async def make(memory_mb: int) -> Function:
        name = f"smlt-{spec.code[:12]}-{memory_mb}"
        version = await cloud.create_function(
            name,
            package,
            handler=HANDLER,
            memory_mb=memory_mb,
            timeout_s=int(spec.limits.function_s),
            environment=function_environment(memory_mb, spec.threads),
            runtime=python_runtime(),
        )
        return Function(name=name, version=version, memory_mb=memory_mb)

    return make
