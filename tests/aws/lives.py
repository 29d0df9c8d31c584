"""All that smlt ever asks of AWS, in scenes that can be played against any set of clients."""

from __future__ import annotations

import dataclasses
import io
import zipfile

from smlt.aws import docker as docker_of_smlt
from smlt.aws import registry
from smlt.aws.deployment import Deployment
from smlt.aws.doctor import examine
from smlt.aws.machine import Machine
from smlt.aws.package import Package
from smlt.aws.release import Release
from smlt.aws.removal import Deployed
from smlt.control.lambda_client import LambdaClient

SIZE = 1769
IMAGE = "0123456789abcdef"
ACCESS_POINT = (
    "arn:aws:elasticfilesystem:us-east-1:123456789012:access-point/fsap-0123456789abcdef0"
)


def zipped(name):
    """A zip of one module whose handler returns its event; always the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "def handler(event, context): return event\n")
    return buffer.getvalue()


def a_release(bucket, digest, **settings):
    """A release in a private network, with all that can be set."""
    values = {
        "name": "recorded",
        "region": "us-east-1",
        "objects": f"s3://{bucket}/here",
        "parameters": "rediss://cache:6379/0?password_from=secretsmanager:valkey",
        "python": "3.12",
        "architecture": "x86_64",
        "code": digest,
        "layer": "abc",
        "ephemeral_mb": 1024,
        "subnets": ("subnet-1", "subnet-2"),
        "security_groups": ("sg-1",),
        "reserved_concurrency": 5,
        "log_days": 30,
    }
    return Release(**values | settings)


async def deploying(api, release):
    """From nothing to published functions, among them the gateway."""
    deployment = await Deployment.open(api, release)
    await deployment.apply([SIZE])
    await deployment.function(SIZE, None)
    await deployment.gateway()


async def deploying_again(api, release):
    """What is so already is left alone."""
    deployment = await Deployment.open(api, release)
    await deployment.apply([SIZE])


async def changing(api, release):
    """Another state: more of /tmp, other logs, no reserved concurrency, a file system of data."""
    other = dataclasses.replace(
        release,
        ephemeral_mb=2048,
        log_days=7,
        reserved_concurrency=None,
        bundles="d" * 64,
        efs=ACCESS_POINT,
        efs_data="imagenet",
    )
    deployment = await Deployment.open(api, other)
    await deployment.apply([SIZE])
    await deployment.function(SIZE, None)


async def examining(api, release):
    """The doctor's questions to AWS."""
    await examine(api, release.name, "memory://doctor", None, 4)


async def destroying(api, release):
    """From all to nothing."""
    await Deployed(api, release.name).remove()


class SilentDocker:
    """Builds and pushes nothing."""

    def __init__(self, pushed=lambda name: None):
        self._pushed = pushed

    async def build(self, context, name, platform):
        """Do nothing."""

    async def login(self, registry, user, password):
        """Do nothing."""

    async def push(self, name):
        self._pushed(name)


async def deploying_an_image(api, release, docker=None):
    """A function of a container image."""
    made = docker or SilentDocker()
    registry.Docker = lambda: made
    try:
        package = Package(Machine("3.12", "x86_64"), {}, {}, [], {}, is_image=True)
        image = dataclasses.replace(
            release,
            image=IMAGE,
            name=f"{release.name}-image",
            subnets=(),
            security_groups=(),
            reserved_concurrency=None,
        )
        deployment = await Deployment.open(api, image, package)
        await deployment.apply([SIZE])
        await deployment.function(SIZE, None)
        await Deployed(api, image.name).remove()
    finally:
        registry.Docker = docker_of_smlt.Docker


async def running(functions, logs, name, qualifier):
    """What a job's client does while it trains."""
    client = LambdaClient(functions, logs)
    await client.invoke(name, qualifier, {"job_id": "a", "rank": 0})
    await client.call(name, qualifier, {"gateway": "question"}, 10.0)
    await client.log_events(name, 1_700_000_000_000)
