"""From a user's settings to a package and the release that it becomes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from smlt.aws.bundles import bundle_list, make_bundle
from smlt.aws.image import image_tag
from smlt.aws.package import Package, build_package
from smlt.aws.release import Release, deployment_name
from smlt.config import TrainConfig
from smlt.config.aws import AwsConfig, cache_dir
from smlt.config.limits import EPHEMERAL_MB
from smlt.control.artifact_manager import Target
from smlt.control.source_files import all_files
from smlt.errors import ConfigError
from smlt.io.keys import bundle_key, bundle_list_key, layer_key, package_key
from smlt.io.object_store import ObjectStore
from smlt.messages.worker import Bundle
from smlt.worker.task_loader import find_class

_TORCH_TASK = "smlt.worker.torch_task"
_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sending:
    """Something on its way to the bucket."""

    what: str
    done: int
    """Bytes that are there."""
    size: int

    def __str__(self) -> str:
        return f"uploading {self.what} ({self.size / 1e6:.1f} MB)"


Told = Callable[[Sending], None]


@dataclass(frozen=True, slots=True)
class Shipment:
    """A package on its way to the bucket of its release."""

    package: Package
    release: Release
    bundles: list[tuple[Bundle, Path]]

    @property
    def code(self) -> str:
        """Names the code in the job's state."""
        return self.release.code

    async def upload(self, objects: ObjectStore, told: Told = lambda sending: None) -> None:
        """Store the zips under their digests; what is there already is not sent again."""
        package = self.package
        code, layer = package_key(self.release.code), layer_key(self.release.layer)
        if await objects.head(code) is None:
            told(Sending("your code and smlt", 0, len(package.code_zip)))
            await objects.put(code, package.code_zip)
        if self.release.image is None and await objects.head(layer) is None:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "layer.zip"
                await asyncio.to_thread(package.write_layer, path)
                await _send(objects, layer, path, "the packages", told)
        for bundle, path in self.bundles:
            key = bundle_key(bundle.sha256)
            if await objects.head(key) is None:
                await _send(objects, key, path, f"{bundle.name} {bundle.version}", told)
        if self.release.bundles is not None:
            listed = bundle_list_key(self.release.bundles)
            if await objects.head(listed) is None:
                await objects.put(listed, bundle_list([bundle for bundle, _ in self.bundles]))


async def _send(objects: ObjectStore, key: str, path: Path, what: str, told: Told) -> None:
    size, done = (await asyncio.to_thread(path.stat)).st_size, 0

    def moved(count: int) -> None:
        nonlocal done
        done = min(size, done + count)
        told(Sending(what, done, size))

    told(Sending(what, 0, size))
    await objects.put_file(key, path, moved)


def prepare(
    target: Target, data: Path | None, skip: Iterable[Path], config: TrainConfig, aws: AwsConfig
) -> Shipment:
    """Build the package of a task, and say what becomes of it. Blocks while pip works.

    Raises:
        ConfigError: a store is not named, or the package cannot be built.
    """
    for option, url in (("--objects", config.object_store), ("--parameters", config.parameters)):
        if url is None:
            raise ConfigError(f"AWS's functions cannot see this machine: name a store, {option}")
    torch = any(base.__module__ == _TORCH_TASK for base in _mro(target))
    cache = cache_dir()
    package = build_package(target, skip, aws, cache, torch=torch)
    bundles = [make_bundle(wheel, cache) for wheel in package.bundled]
    listed = bundle_list([bundle for bundle, _ in bundles])
    unpacked = sum(bundle.unpacked for bundle, _ in bundles)
    release = Release(
        name=deployment_name(aws.name, str(config.object_store)),
        region=aws.region,
        objects=str(config.object_store),
        parameters=str(config.parameter_store),
        python=aws.python,
        architecture=aws.architecture,
        code=package.code_digest,
        layer=package.layer_digest,
        image=image_tag(package) if package.is_image else None,
        bundles=hashlib.sha256(listed).hexdigest() if bundles else None,
        ephemeral_mb=aws.ephemeral_mb or _ephemeral_mb(data, unpacked),
        role=aws.role,
        efs=aws.efs,
        efs_data=aws.efs_data,
        subnets=aws.subnets,
        security_groups=aws.security_groups,
        reserved_concurrency=aws.reserved_concurrency,
        log_days=aws.log_days,
    )
    return Shipment(package, release, bundles)


def _mro(target: Target) -> tuple[type, ...]:
    return find_class(target.reference, target.root).__mro__


def _ephemeral_mb(data: Path | None, unpacked: int) -> int:
    """Room for packages and data beside what every function has anyway, as far as Lambda goes."""
    least, most = EPHEMERAL_MB
    size = unpacked
    if data is not None:
        size += sum(path.stat().st_size for path in all_files(data))
    return min(most, least + -(-size // _MB))
