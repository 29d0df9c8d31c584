"""What is done to an AWS account apart from running a job: pack, deploy, destroy, examine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from smlt.aws.api import open_api
from smlt.aws.deployment import Change, Deployment
from smlt.aws.doctor import Finding, examine
from smlt.aws.release import deployment_name
from smlt.aws.removal import Deployed
from smlt.aws.shipment import Sending, Shipment, prepare
from smlt.config import TrainConfig
from smlt.config.aws import AwsConfig
from smlt.control import artifact_manager
from smlt.errors import ConfigError, StoreError
from smlt.io.s3 import S3ObjectStore
from smlt.io.stores import open_object_store


def pack(config: TrainConfig, aws: AwsConfig) -> Shipment:
    """Build the package that a job of these settings would run. Blocks while pip works."""
    target = artifact_manager.locate(config.target, Path.cwd())
    data = None if aws.efs is not None else artifact_manager.find_data(target, config.data_folder)
    run_dir = config.run_dir.resolve()
    skip = [run_dir, data or target.folder / "data"]
    return prepare(target, data, skip, config, aws)


async def deploy(
    shipment: Shipment,
    sizes: list[int],
    *,
    dry_run: bool,
    told: Callable[[Change], None],
    said: Callable[[str], None],
    sending: Callable[[Sending], None],
) -> None:
    """Bring the account to what the package needs, for functions of these sizes in MB."""
    release = shipment.release
    async with open_api(release.region) as api:
        deployment = await Deployment.open(api, release, shipment.package)
        if not dry_run:
            async with open_object_store(release.objects) as objects:
                await shipment.upload(objects, sending)
        await deployment.apply(sizes, dry_run=dry_run, told=told)
        if not dry_run:
            for memory_mb in sizes:
                function = await deployment.function(memory_mb, None)
                said(f"published {function.name} version {function.version}")


async def destroy(
    objects: str, aws: AwsConfig, *, dry_run: bool, told: Callable[[str], None]
) -> str:
    """Remove a deployment, and prove that nothing is left; return its name."""
    name = deployment_name(aws.name, objects)
    async with open_api(aws.region) as api:
        deployed = Deployed(api, name, has_role=aws.role is None)
        if dry_run:
            for title, _ in await deployed.found():
                told(title)
        else:
            await deployed.remove(told)
            await _give_up_uploads(objects, told)
    return name


async def _give_up_uploads(objects: str, told: Callable[[str], None]) -> None:
    """Free what uploads that were cut have left in the bucket, as far as it is still there."""
    with contextlib.suppress(ConfigError, StoreError):
        async with open_object_store(objects) as store:
            if isinstance(store, S3ObjectStore) and (count := await store.give_up_uploads()):
                told(f"what {count} unfinished uploads have left")


async def diagnose(
    objects: str, parameters: str | None, aws: AwsConfig, workers: int
) -> list[Finding]:
    """Look for what would keep a job from running."""
    async with open_api(aws.region) as api:
        name = deployment_name(aws.name, objects)
        return await examine(api, name, objects, parameters, workers)
