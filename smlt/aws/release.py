"""What is deployed, by name: all that functions are made from, without a file of this machine."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from smlt.aws.machine import Machine

TAG = "smlt:deployment"
_LONGEST_SLUG = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One state of a deployment. A job keeps it, so that a later client makes the same functions.

    Keys are names of objects in the bucket, whole, as AWS's own calls want them.
    """

    name: str
    region: str | None
    objects: str
    """URL of the object store."""
    parameters: str
    """URL of the parameter store."""
    python: str
    architecture: str
    code: str
    """Digest of the function's zip."""
    layer: str
    """Digest of the layer."""
    image: str | None = None
    """Tag of the container image that holds all of it; None: it is deployed as zips."""
    bundles: str | None = None
    """Digest of the list of bundles that a function fetches, if it needs any."""
    ephemeral_mb: int = 512
    role: str | None = None
    """ARN of a role that the user has made; None: smlt makes one."""
    efs: str | None = None
    """ARN of the EFS access point that holds the data."""
    efs_data: str = ""
    """The data's folder below it."""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    reserved_concurrency: int | None = None
    log_days: int = 14

    @property
    def machine(self) -> Machine:
        return Machine(self.python, self.architecture)

    @property
    def tags(self) -> dict[str, str]:
        """What tells everything of this deployment from all else in the account."""
        return {TAG: self.name}

    @property
    def role_name(self) -> str:
        return f"smlt-{self.name}"

    @property
    def layer_name(self) -> str:
        return f"smlt-{self.name}"

    @property
    def repository_name(self) -> str:
        return f"smlt-{self.name}"

    def function_name(self, word: object) -> str:
        """Name a function by its size, or its purpose; Lambda makes no image's one of a zip's."""
        return f"{self.function_prefix}{word}{'-image' if self.image else ''}"

    @property
    def function_prefix(self) -> str:
        return function_prefix(self.name)

    @property
    def has_gateway(self) -> bool:
        """Whether its parameter store is in a network that a client need not see."""
        return bool(self.subnets) and not self.parameters.startswith("s3://")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        for name in ("subnets", "security_groups"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


def function_prefix(name: str) -> str:
    """Return what the names of a deployment's functions begin with."""
    return f"smlt-{name}-"


def deployment_name(given: str | None, objects: str) -> str:
    """Return the name of the deployment: the one given, else one made from the object store's URL.

    Two object stores have two names, so that neither's functions can be taken for the other's.
    """
    if given is not None:
        return given
    shown = objects.partition("?")[0].rstrip("/")
    slug = re.sub(r"[^a-z0-9]+", "-", shown.rpartition("/")[2].lower()).strip("-")
    return f"{slug[:_LONGEST_SLUG].strip('-')}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
