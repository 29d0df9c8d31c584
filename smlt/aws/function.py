"""A function: its code, its settings, and the version that a job runs."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

from smlt.aws.api import Api
from smlt.aws.registry import Image
from smlt.aws.release import Release
from smlt.aws.resources import Layer, Role
from smlt.control.artifact_manager import HANDLER
from smlt.errors import CloudError
from smlt.io.keys import package_key
from smlt.io.s3_address import S3Address

_READY_S = 300.0
"""Publishing takes a minute in a private network."""
_POLL_S = (0.05, 1.0)
_ROLE_S = 60.0
"""A role that is new is not known everywhere at once."""
_RECURSION = "Terminate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one function has to itself, among those of a release."""

    name: str
    description: str
    memory_mb: int
    timeout_s: int
    ephemeral_mb: int
    environment: dict[str, str]
    mounts: tuple[tuple[str, str], ...]
    """Each access point of EFS, and where it is mounted."""
    reserved_concurrency: int | None


class LambdaFunction:
    """Brings ``$LATEST`` to what a release says, and publishes it."""

    def __init__(
        self,
        api: Api,
        release: Release,
        shape: Shape,
        role: Role,
        layer: Layer | None,
        image: Image | None,
    ) -> None:
        """Take the layer of zips, or the image instead."""
        self._api = api
        self._release = release
        self._shape = shape
        self._role = role
        self._layer = layer
        self._image = image
        self.name = shape.name
        self.title = f"function {self.name}"
        self._found: dict[str, Any] | None = None
        self._found_code: dict[str, Any] = {}
        self._code_sha256 = b64encode(bytes.fromhex(release.code)).decode()

    async def look(self) -> str:
        found = await self._api.find(
            "lambda", "get_function", f"looking at the {self.title}", FunctionName=self.name
        )
        if found is None:
            self._found = None
            return "create it"
        self._found, self._found_code = found["Configuration"], found.get("Code", {})
        changed = [name for name in self._settings() if not self._has(name)]
        if self._code_differs:
            changed.insert(0, "code")
        if found.get("Concurrency", {}).get("ReservedConcurrentExecutions") != (
            self._shape.reserved_concurrency
        ):
            changed.append("reserved concurrency")
        return f"update {', '.join(changed)}" if changed else ""

    async def bring(self) -> None:
        if self._found is None:
            await self._create()
        else:
            await self._update()
        await self._settle()

    async def publish(self) -> str:
        """Return the version of what ``$LATEST`` is now, a new one if it has changed."""
        doing = f"publishing the {self.title}"
        await self._until_ready(None)
        # Refused if another client has deployed other code meanwhile.
        made = await self._api.call(
            "lambda",
            "publish_version",
            doing,
            FunctionName=self.name,
            CodeSha256=self._code_sha256 if self._image is None else None,
        )
        version = str(made["Version"])
        await self._until_ready(version)
        name = {"FunctionName": self.name}
        await self._api.call(
            "lambda", "put_function_recursion_config", doing, **name, RecursiveLoop=_RECURSION
        )
        # A retry by the service would be a second worker under the first one's name. Each version
        # has a configuration of its own.
        await self._api.call(
            "lambda",
            "put_function_event_invoke_config",
            doing,
            **name,
            Qualifier=version,
            MaximumRetryAttempts=0,
            MaximumEventAgeInSeconds=60,
        )
        return version

    def _settings(self) -> dict[str, Any]:
        """What of the configuration is ours to say, beside the code."""
        release, shape = self._release, self._shape
        settings = {
            "Role": self._role.arn,
            "Description": shape.description,
            "Timeout": shape.timeout_s,
            "MemorySize": shape.memory_mb,
            "EphemeralStorage": {"Size": shape.ephemeral_mb},
            "Environment": {"Variables": shape.environment},
            "FileSystemConfigs": [
                {"Arn": arn, "LocalMountPath": path} for arn, path in shape.mounts
            ],
            "VpcConfig": {
                "SubnetIds": list(release.subnets),
                "SecurityGroupIds": list(release.security_groups),
            },
        }
        if self._layer is not None:
            settings |= {
                "Runtime": release.machine.runtime,
                "Handler": HANDLER,
                "Layers": [self._layer.arn],
            }
        return settings

    def _has(self, name: str) -> bool:
        found, wanted = (self._found or {}).get(name), self._settings()[name]
        if name == "Layers":
            return bool([layer["Arn"] for layer in found or ()] == wanted)
        if name == "FileSystemConfigs":
            return bool((found or []) == wanted)
        if name == "VpcConfig":
            found = found or {}
            return all(sorted(found.get(key) or ()) == sorted(wanted[key]) for key in wanted)
        if name == "Environment":
            return bool((found or {}).get("Variables", {}) == wanted["Variables"])
        return bool(found == wanted)

    @property
    def _code_differs(self) -> bool:
        found = self._found or {}
        architectures = found.get("Architectures") or ["x86_64"]
        other_machine: bool = architectures != [self._release.architecture]
        if self._image is not None:
            return other_machine or bool(self._found_code.get("ImageUri") != self._image.uri)
        return other_machine or bool(found.get("CodeSha256") != self._code_sha256)

    def _code(self) -> dict[str, str]:
        if self._image is not None:
            return {"ImageUri": self._image.uri}
        address = S3Address.parse(self._release.objects)
        return {
            "S3Bucket": address.bucket,
            "S3Key": address.name(package_key(self._release.code)),
        }

    async def _create(self) -> None:
        doing = f"creating the {self.title}"
        await self._with_role(
            doing,
            "create_function",
            FunctionName=self.name,
            PackageType="Zip" if self._image is None else "Image",
            Code=self._code(),
            Architectures=[self._release.architecture],
            Tags=self._release.tags,
            **self._settings(),
        )

    async def _update(self) -> None:
        doing = f"updating the {self.title}"
        await self._until_ready(None)
        if self._code_differs:
            await self._api.call(
                "lambda",
                "update_function_code",
                doing,
                FunctionName=self.name,
                Architectures=[self._release.architecture],
                **self._code(),
            )
            await self._until_ready(None)
        await self._with_role(
            doing, "update_function_configuration", FunctionName=self.name, **self._settings()
        )

    async def _settle(self) -> None:
        """Set what stands beside the configuration."""
        doing, name = f"setting up the {self.title}", {"FunctionName": self.name}
        await self._until_ready(None)
        reserved = self._shape.reserved_concurrency
        if reserved is None:
            await self._api.call("lambda", "delete_function_concurrency", doing, **name)
        else:
            await self._api.call(
                "lambda",
                "put_function_concurrency",
                doing,
                **name,
                ReservedConcurrentExecutions=reserved,
            )

    async def _with_role(self, doing: str, operation: str, **given: Any) -> None:
        """Call what names the role, again while AWS has not heard of a new one everywhere."""
        loop = asyncio.get_running_loop()
        give_up, pause_s = loop.time() + _ROLE_S, _POLL_S[0]
        while True:
            try:
                await self._api.call("lambda", operation, doing, **given)
            except CloudError as exc:
                unknown = "cannot be assumed" in str(exc) or "role" in str(exc).lower()
                if "InvalidParameterValue" not in str(exc) or not unknown or loop.time() > give_up:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)
            else:
                return

    async def _until_ready(self, version: str | None) -> None:
        doing, pause_s = f"waiting for the {self.title}", _POLL_S[0]
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._is_ready(doing, version):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _POLL_S[1])
        except TimeoutError:
            raise CloudError(f"{doing} took more than {_READY_S:g} s") from None

    async def _is_ready(self, doing: str, version: str | None) -> bool:
        found = await self._api.call(
            "lambda",
            "get_function_configuration",
            doing,
            FunctionName=self.name,
            Qualifier=version,
        )
        state, update = found.get("State", "Active"), found.get("LastUpdateStatus")
        if "Failed" in (state, update):
            reason = found.get("StateReason") or found.get("LastUpdateStatusReason")
            raise CloudError(f"the {self.title} cannot be made ready: {reason}")
        if state not in ("Active", "Inactive") or update not in (None, "Successful"):
            return False
        if version is not None:
            self._check_published(version, found)
        return True

    def _check_published(self, version: str, found: dict[str, Any]) -> None:
        """Compare what was published with the plan: another client may have changed it between."""
        names = ("version", "memory", "architecture")
        wanted = (version, self._shape.memory_mb, self._release.architecture)
        architectures = found.get("Architectures") or ["x86_64"]
        there = (found.get("Version"), found.get("MemorySize"), architectures[0])
        for name, expected, actual in zip(names, wanted, there, strict=True):
            if expected != actual:
                raise CloudError(
                    f"the {self.title} was published with the {name} {actual} instead of "
                    f"{expected}: another client deploys it; try again when that has ended"
                )
