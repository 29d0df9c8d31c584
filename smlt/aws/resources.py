"""The single things that a deployment is made of: each can be looked at, and brought up to date."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from smlt.aws.api import Api
from smlt.aws.policy import TRUST, permissions
from smlt.aws.release import Release
from smlt.io.keys import layer_key
from smlt.io.s3_address import S3Address

_POLICY = "smlt"


@dataclass(frozen=True, slots=True)
class Account:
    """Whose credentials we have, and where."""

    number: str
    partition: str
    region: str

    @property
    def domain(self) -> str:
        """What the names of AWS's own hosts end with there."""
        return "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"

    @classmethod
    async def of(cls, api: Api, region: str) -> Account:
        """Ask AWS who we are."""
        who = await api.call("sts", "get_caller_identity", "asking AWS who we are")
        return cls(str(who["Account"]), str(who["Arn"]).split(":")[1], region)


class Resource(Protocol):
    """One thing in the account."""

    title: str

    async def look(self) -> str:
        """Say what must be done, as in "create it"; nothing where all is as it should be."""
        ...

    async def bring(self) -> None:
        """Do it."""
        ...


class Role:
    """The role that the functions run by. One that the user has made is left alone."""

    def __init__(self, api: Api, release: Release, account: Account) -> None:
        self._api = api
        self._release = release
        self._name = release.role_name
        self.title = f"role {self._name}"
        self.arn = release.role or (
            f"arn:{account.partition}:iam::{account.number}:role/{self._name}"
        )
        self._policy = permissions(release, account.number, account.partition, account.region)
        self._exists = False

    async def look(self) -> str:
        if self._release.role is not None:
            return ""
        doing = f"looking at the {self.title}"
        found = await self._api.find("iam", "get_role", doing, RoleName=self._name)
        self._exists = found is not None
        if found is None:
            return "create it"
        tags = {tag["Key"]: tag["Value"] for tag in found["Role"].get("Tags", ())}
        trusted = found["Role"]["AssumeRolePolicyDocument"] == TRUST
        named = {"RoleName": self._name, "PolicyName": _POLICY}
        policy = await self._api.find("iam", "get_role_policy", doing, **named)
        allowed = policy is not None and policy["PolicyDocument"] == self._policy
        same = trusted and allowed and tags.items() >= self._release.tags.items()
        return "" if same else "update what it may do"

    async def bring(self) -> None:
        doing, tags = f"making the {self.title}", tag_list(self._release.tags)
        name = {"RoleName": self._name}
        if self._exists:
            await self._api.call(
                "iam", "update_assume_role_policy", doing, **name, PolicyDocument=packed(TRUST)
            )
            await self._api.call("iam", "tag_role", doing, **name, Tags=tags)
        else:
            await self._api.call(
                "iam",
                "create_role",
                doing,
                **name,
                AssumeRolePolicyDocument=packed(TRUST),
                Description="What the workers of smlt run by.",
                Tags=tags,
            )
        await self._api.call(
            "iam",
            "put_role_policy",
            doing,
            **name,
            PolicyName=_POLICY,
            PolicyDocument=packed(self._policy),
        )


class Layer:
    """The packages, as a layer of the functions."""

    def __init__(self, api: Api, release: Release) -> None:
        self._api = api
        self._release = release
        self.title = f"layer {release.layer_name}"
        self.arn: str | None = None
        """Of the version that holds this release's packages, once that is there."""

    async def look(self) -> str:
        doing = f"looking at the {self.title}"
        versions = await self._api.all(
            "lambda",
            "list_layer_versions",
            doing,
            "LayerVersions",
            LayerName=self._release.layer_name,
        )
        for version in versions:
            if version.get("Description") == self._description:
                self.arn = version["LayerVersionArn"]
                return ""
        return "publish a version with these packages"

    async def bring(self) -> None:
        address, machine = S3Address.parse(self._release.objects), self._release.machine
        made = await self._api.call(
            "lambda",
            "publish_layer_version",
            f"publishing the {self.title}",
            LayerName=self._release.layer_name,
            Description=self._description,
            Content={
                "S3Bucket": address.bucket,
                "S3Key": address.name(layer_key(self._release.layer)),
            },
            CompatibleRuntimes=[machine.runtime],
            CompatibleArchitectures=[machine.architecture],
        )
        self.arn = made["LayerVersionArn"]

    @property
    def _description(self) -> str:
        return f"smlt packages {self._release.layer} for {self._release.machine}"


class LogGroup:
    """Where a function's log goes. Made beforehand: Lambda would make it keep logs for ever."""

    def __init__(self, api: Api, release: Release, function: str) -> None:
        self._api = api
        self._release = release
        self._name = f"/aws/lambda/{function}"
        self.title = f"log group {self._name}"
        self._exists = False

    async def look(self) -> str:
        groups = await self._api.all(
            "logs",
            "describe_log_groups",
            f"looking at the {self.title}",
            "logGroups",
            logGroupNamePrefix=self._name,
        )
        found = [group for group in groups if group["logGroupName"] == self._name]
        self._exists = bool(found)
        if not found:
            return "create it"
        kept = found[0].get("retentionInDays") == self._release.log_days
        return "" if kept else f"keep logs for {self._release.log_days} days"

    async def bring(self) -> None:
        doing = f"making the {self.title}"
        if not self._exists:
            await self._api.call(
                "logs",
                "create_log_group",
                doing,
                logGroupName=self._name,
                tags=self._release.tags,
            )
        await self._api.call(
            "logs",
            "put_retention_policy",
            doing,
            logGroupName=self._name,
            retentionInDays=self._release.log_days,
        )


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as most services take them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def packed(document: dict[str, Any]) -> str:
    """A policy as IAM takes it."""
    return json.dumps(document, sort_keys=True)
