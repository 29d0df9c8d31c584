"""What a user may say about AWS, and what AWS's own environment variables say."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from smlt.config.limits import EPHEMERAL_MB, MEMORY_MB
from smlt.config.sources import flag, join, kinds_of, layers
from smlt.config.values import Names, shown
from smlt.errors import ConfigError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
PYTHONS = ("3.11", "3.12", "3.13")
ARCHITECTURES = ("x86_64", "arm64")
LOG_DAYS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365)

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SYSTEM_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ACCESS_POINT = re.compile(
    r"arn:aws[\w-]*:elasticfilesystem:[\w-]+:\d{12}:access-point/fsap-[0-9a-f]+"
)
_ROLE = re.compile(r"arn:aws[\w-]*:iam::\d{12}:role/.+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsConfig:
    """Where and as what the functions are deployed: the ``[aws]`` table of ``smlt.toml``.

    Raises:
        ConfigError: a value cannot be used; the one sentence says where it came from.
    """

    name: str | None = None
    """Of the deployment; by default made from the object store's URL."""
    region: str | None = None
    """By default what AWS_REGION or the AWS profile says."""
    python: str = min(max(f"3.{sys.version_info.minor}", PYTHONS[1]), PYTHONS[-1])
    """By default the client's own, but not 3.11: its system is too old for today's wheels."""
    architecture: str = "x86_64"
    requirements: Path | None = None
    """A requirements file; by default ``requirements.txt`` beside the task's file."""
    sizes: Names = field(default_factory=Names)
    """Memory sizes in MB to make functions for ahead of time, beside the job's own."""
    role: str | None = None
    """ARN of an execution role that exists; by default one is made."""
    subnets: Names = field(default_factory=Names)
    security_groups: Names = field(default_factory=Names)
    reserved_concurrency: int | None = None
    log_days: int = 14
    ephemeral_mb: int | None = None
    """Size of /tmp; by default as much as the packages need."""
    image: bool = False
    """Deploy a container image, which the user's Docker builds, instead of zips."""
    system_packages: Names = field(default_factory=Names)
    """What else of Amazon Linux an image is to have, as dnf names it."""
    efs: str | None = None
    """ARN of an EFS access point, which every worker mounts for its data."""
    efs_data: str = ""
    """The data's folder below the access point."""
    core: Path | None = None
    """Folder with smlt's core compiled for the target; by default it is built."""
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("subnets", "security_groups", "sizes", "system_packages"):
            object.__setattr__(self, name, Names(str(one) for one in getattr(self, name)))
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise self._refuse("name", "use up to 31 small letters, digits and hyphens.")
        self._check_choice("python", PYTHONS)
        self._check_choice("architecture", ARCHITECTURES)
        self._check_choice("log_days", LOG_DAYS)
        if self.requirements is not None and not self.requirements.is_file():
            raise self._refuse("requirements", "there is no such file.")
        if self.core is not None and not self.core.is_dir():
            raise self._refuse("core", "there is no such folder.")
        if self.role is not None and not _ROLE.fullmatch(self.role):
            raise self._refuse("role", "write a role's ARN, arn:aws:iam::123456789012:role/NAME.")
        if self.system_packages and not self.image:
            raise self._refuse("system_packages", "only an image can have them: set image, too.")
        for package in self.system_packages:
            if not _SYSTEM_PACKAGE.fullmatch(package):
                raise self._refuse("system_packages", f"{shown(package)} is no package's name.")
        if self.efs is not None and not _ACCESS_POINT.fullmatch(self.efs):
            raise self._refuse("efs", "write the ARN of an access point, arn:…:access-point/fsap-…")
        if self.efs is not None and not self.subnets:
            raise self._refuse("efs", "it is mounted in a private network only: give subnets, too.")
        if self.efs_data and (self.efs is None or ".." in Path(self.efs_data).parts):
            raise self._refuse("efs_data", "it is a folder below the access point that efs names.")
        if bool(self.subnets) != bool(self.security_groups):
            raise self._refuse("subnets", "subnets and security_groups go together.")
        if self.reserved_concurrency is not None and self.reserved_concurrency < 1:
            raise self._refuse("reserved_concurrency", "give a whole number of at least 1.")
        low, high = EPHEMERAL_MB
        if self.ephemeral_mb is not None and not low <= self.ephemeral_mb <= high:
            raise self._refuse("ephemeral_mb", f"Lambda offers {low} to {high:,} MB.")
        for size in self.sizes:
            if not size.isdigit() or not MEMORY_MB[0] <= int(size) <= MEMORY_MB[1]:
                low, high = MEMORY_MB
                raise self._refuse("sizes", f"Lambda offers {low} to {high:,} MB.")

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Self:
        """Join arguments, ``SMLT_AWS_…`` variables, ``[aws]`` of ``smlt.toml``, and defaults.

        A list may also be written as one text with commas.

        Raises:
            ConfigError: a value cannot be used, or the file has an unknown key or is no TOML.
        """
        values, sources = join(layers("aws", arguments, _KINDS, environment, folder), _KINDS)
        return cls(**values, sources=sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, from which a later client of a job makes the same settings again."""
        plain = {name: getattr(self, name) for name in _KINDS}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in plain.items()
            if value is not None
        }

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        if getattr(self, name) not in choices:
            raise self._refuse(name, f"Lambda offers {', '.join(map(str, choices))}.")

    def _refuse(self, name: str, why: str) -> ConfigError:
        where = self.sources.get(name, flag(name))
        value = getattr(self, name)
        text = ", ".join(value) if isinstance(value, tuple) else value
        return ConfigError(f"{where} is {shown(text)}: {why}")


_KINDS = kinds_of(AwsConfig)


def s3_endpoint(environment: Mapping[str, str] | None = None) -> str | None:
    """Return where an S3-compatible service is, or None for AWS's own."""
    variables = os.environ if environment is None else environment
    return next((variables[name] for name in ENDPOINT_VARIABLES if variables.get(name)), None)


def with_endpoint(url: str | None, given: str | None) -> str | None:
    """Return an S3 URL with an endpoint in it: its own, the given one, or the variables'."""
    endpoint = given or s3_endpoint()
    if url is None or endpoint is None or not url.startswith("s3://") or "endpoint=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}endpoint={quote(endpoint, safe=':/')}"


def aws_region(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the region that AWS_REGION names, as AWS's own tools take it; boto does not."""
    variables = os.environ if environment is None else environment
    return variables.get("AWS_REGION") or None


def secret_variable(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the password that a variable holds, or None where it is not set."""
    variables = os.environ if environment is None else environment
    return variables.get(name)


def cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """Return where what can be made again is kept: wheels, compiled cores."""
    variables = os.environ if environment is None else environment
    base = variables.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "smlt"
