"""Bring an account to what a release says, step by step; what is so already is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from smlt.aws.api import Api
from smlt.aws.function import LambdaFunction, Shape
from smlt.aws.package import Package
from smlt.aws.registry import Image, Repository
from smlt.aws.release import Release
from smlt.aws.resources import Account, Layer, LogGroup, Resource, Role
from smlt.config.function import BUNDLES_VARIABLE, DATA_VARIABLE
from smlt.control.functions import Function
from smlt.control.job_settings import function_environment
from smlt.errors import ConfigError

GATEWAY_MB = 512
"""Its calls take milliseconds; with less memory, and so less of a core, they take longer."""
_GATEWAY_S = 60
_GATEWAY_CALLS = 2
"""At a time: one, and one that nobody waits for any more. Workers cannot take their place."""
WORKER_S = 900
"""Lambda's own limit."""
_LEAST_TMP_MB = 512
_MOUNT = "/mnt/data"


@dataclass(frozen=True, slots=True)
class Change:
    """What a deployment does, or would do, to one thing in the account."""

    title: str
    what: str
    """Empty: nothing."""


class Deployment:
    """A release on its way into an account."""

    def __init__(
        self, api: Api, release: Release, account: Account, package: Package | None
    ) -> None:
        self._api = api
        self.release = release
        self._role = Role(api, release, account)
        self._layer = Layer(api, release) if release.image is None else None
        self._image = Image(api, release, account, package) if release.image else None
        self._shared = False

    @classmethod
    async def open(cls, api: Api, release: Release, package: Package | None = None) -> Deployment:
        """Find out whose account it is. Only with the package can an image be made.

        Raises:
            ConfigError: no region is named, or there are no credentials that do.
        """
        region = api.region
        if region is None:
            raise ConfigError("no region is named; set AWS_REGION, or region in [aws] of smlt.toml")
        release = replace(release, region=region)
        return cls(api, release, await Account.of(api, region), package)

    async def apply(
        self,
        sizes: Iterable[int],
        threads: int | None = None,
        *,
        dry_run: bool = False,
        told: Callable[[Change], None] = lambda change: None,
    ) -> None:
        """Bring everything about functions of these sizes up to date.

        Args:
            sizes: memory in MB.
            threads: as in ``function_environment``.
            dry_run: only look, and tell what would be done.
            told: is called with each change, done or to be done.

        Raises:
            CloudError: AWS refused something. What was done until then stays, and is found.
        """
        for resource in self._shared_resources():
            await self._bring(resource, dry_run=dry_run, told=told)
        self._shared = True
        for memory_mb in sizes:
            shape = self._worker(memory_mb, threads, WORKER_S)
            await self._function(shape, dry_run=dry_run, told=told)
        if self.release.has_gateway:
            await self._function(self._gateway(), dry_run=dry_run, told=told)

    def _shared_resources(self) -> list[Resource]:
        if self._layer is not None:
            return [self._role, self._layer]
        assert self._image is not None
        return [self._role, Repository(self._api, self.release), self._image]

    async def function(
        self, memory_mb: int, threads: int | None, timeout_s: int = WORKER_S
    ) -> Function:
        """Return the published version of one size, made if it is not there."""
        return await self._published(self._worker(memory_mb, threads, timeout_s))

    async def gateway(self) -> Function:
        """Return the function through which a client reaches the parameter store."""
        return await self._published(self._gateway())

    async def _published(self, shape: Shape) -> Function:
        if not self._shared:
            await self.apply(())
        function = await self._function(shape)
        version = await function.publish()
        return Function(name=function.name, version=version, memory_mb=shape.memory_mb)

    def _worker(self, memory_mb: int, threads: int | None, timeout_s: int) -> Shape:
        release = self.release
        environment = function_environment(memory_mb, threads, release.architecture)
        if release.bundles is not None:
            environment[BUNDLES_VARIABLE] = release.bundles
        if release.efs is not None:
            environment[DATA_VARIABLE] = f"{_MOUNT}/{release.efs_data}".rstrip("/")
        return Shape(
            name=release.function_name(memory_mb),
            description="A worker of smlt.",
            memory_mb=memory_mb,
            timeout_s=timeout_s,
            ephemeral_mb=release.ephemeral_mb,
            environment=environment,
            mounts=((release.efs, _MOUNT),) if release.efs is not None else (),
            reserved_concurrency=release.reserved_concurrency,
        )

    def _gateway(self) -> Shape:
        return Shape(
            name=self.release.function_name("gateway"),
            description="The way of smlt's client to the parameter store.",
            memory_mb=GATEWAY_MB,
            timeout_s=_GATEWAY_S,
            ephemeral_mb=_LEAST_TMP_MB,
            environment={},
            mounts=(),
            reserved_concurrency=_GATEWAY_CALLS if self.release.reserved_concurrency else None,
        )

    async def _function(
        self,
        shape: Shape,
        *,
        dry_run: bool = False,
        told: Callable[[Change], None] = lambda change: None,
    ) -> LambdaFunction:
        group = LogGroup(self._api, self.release, shape.name)
        function = LambdaFunction(
            self._api, self.release, shape, self._role, self._layer, self._image
        )
        for resource in (group, function):
            await self._bring(resource, dry_run=dry_run, told=told)
        return function

    async def _bring(
        self, resource: Resource, *, dry_run: bool, told: Callable[[Change], None]
    ) -> None:
        what = await resource.look()
        if what and not dry_run:
            await resource.bring()
        told(Change(resource.title, what))
