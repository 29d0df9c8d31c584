"""Remove a deployment, and prove that nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from smlt.aws.api import Api
from smlt.aws.release import TAG, function_prefix
from smlt.errors import CloudError, ConfigError

_GONE_S = 60.0
"""AWS's index of tags hears of a removal late."""
_POLL_S = (0.2, 5.0)

Removal = tuple[str, Callable[[], Awaitable[object]]]


class Deployed:
    """What an account holds of one deployment: by name, and by tag, so that no namesake goes."""

    def __init__(self, api: Api, name: str, *, has_role: bool = True) -> None:
        """Name the deployment; without a role of its own, nothing of IAM is asked."""
        self._api = api
        self._name = name
        self._has_role = has_role
        self._prefix = function_prefix(name)
        self._role = self._layer = self._repository = f"smlt-{name}"

    async def found(self) -> list[Removal]:
        """Return what there is, in the order in which it can be removed, each with its removal."""
        return [
            *await self._functions(),
            *await self._log_groups(),
            *await self._layers(),
            *await self._repositories(),
            *(await self._roles() if self._has_role else ()),
        ]

    async def remove(self, told: Callable[[str], None] = lambda title: None) -> None:
        """Remove all of it, and look until nothing is left.

        Raises:
            CloudError: AWS refused something, or something is left.
        """
        for title, removal in await self.found():
            await removal()
            told(title)
        loop = asyncio.get_running_loop()
        give_up, pause_s = loop.time() + _GONE_S, _POLL_S[0]
        while left := [title for title, _ in await self.found()] + await self._tagged():
            if loop.time() > give_up:
                raise CloudError(f"still there after {_GONE_S:g} s: {', '.join(left)}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])

    async def _functions(self) -> list[Removal]:
        doing = "looking for functions"
        listed = await self._api.all("lambda", "list_functions", doing, "Functions")
        removals: list[Removal] = []
        for function in listed:
            name = function["FunctionName"]
            if not name.startswith(self._prefix):
                continue
            arn = function["FunctionArn"]
            tags = await self._api.find("lambda", "list_tags", doing, Resource=arn)
            if self._is_ours((tags or {}).get("Tags")):
                title = f"function {name}"
                removals.append(
                    (title, self._delete(title, "lambda", "delete_function", FunctionName=name))
                )
        return removals

    async def _log_groups(self) -> list[Removal]:
        doing = "looking for log groups"
        groups = await self._api.all(
            "logs",
            "describe_log_groups",
            doing,
            "logGroups",
            logGroupNamePrefix=f"/aws/lambda/{self._prefix}",
        )
        removals: list[Removal] = []
        for group in groups:
            name, arn = group["logGroupName"], group["arn"].removesuffix(":*")
            tags = await self._api.find("logs", "list_tags_for_resource", doing, resourceArn=arn)
            if self._is_ours((tags or {}).get("tags")):
                title = f"log group {name}"
                removals.append(
                    (title, self._delete(title, "logs", "delete_log_group", logGroupName=name))
                )
        return removals

    async def _layers(self) -> list[Removal]:
        """Layers have no tags; theirs is a name that only smlt gives."""
        versions = await self._api.all(
            "lambda",
            "list_layer_versions",
            "looking for layers",
            "LayerVersions",
            LayerName=self._layer,
        )
        return [
            (
                title := f"layer {self._layer} version {version['Version']}",
                self._delete(
                    title,
                    "lambda",
                    "delete_layer_version",
                    LayerName=self._layer,
                    VersionNumber=version["Version"],
                ),
            )
            for version in versions
        ]

    async def _repositories(self) -> list[Removal]:
        """Who may not look at ECR deploys no images; were there one, its tag would tell."""
        doing, name = "looking for images", self._repository
        try:
            found = await self._api.all(
                "ecr", "describe_repositories", doing, "repositories", repositoryNames=[name]
            )
        except ConfigError:
            return []
        removals: list[Removal] = []
        for repository in found:
            arn = repository["repositoryArn"]
            answer = await self._api.find("ecr", "list_tags_for_resource", doing, resourceArn=arn)
            tags = {tag["Key"]: tag["Value"] for tag in (answer or {}).get("tags", ())}
            if self._is_ours(tags):
                title = f"repository {name}"
                given = {"repositoryName": name, "force": True}
                removals.append((title, self._delete(title, "ecr", "delete_repository", **given)))
        return removals

    async def _roles(self) -> list[Removal]:
        doing = "looking for the role"
        role = await self._api.find("iam", "get_role", doing, RoleName=self._role)
        tags = {tag["Key"]: tag["Value"] for tag in (role or {}).get("Role", {}).get("Tags", ())}
        if not self._is_ours(tags):
            return []
        policies = await self._api.all(
            "iam", "list_role_policies", doing, "PolicyNames", RoleName=self._role
        )

        async def delete() -> None:
            title = f"removing the role {self._role}"
            for policy in policies:
                await self._api.find(
                    "iam", "delete_role_policy", title, RoleName=self._role, PolicyName=policy
                )
            await self._api.find("iam", "delete_role", title, RoleName=self._role)

        return [(f"role {self._role}", delete)]

    async def _tagged(self) -> list[str]:
        """What AWS's own index knows under our tag, of whatever kind."""
        found = await self._api.all(
            "resourcegroupstaggingapi",
            "get_resources",
            "looking for what is tagged",
            "ResourceTagMappingList",
            TagFilters=[{"Key": TAG, "Values": [self._name]}],
        )
        return [str(resource["ResourceARN"]) for resource in found]

    def _is_ours(self, tags: dict[str, str] | None) -> bool:
        return (tags or {}).get(TAG) == self._name

    def _delete(
        self, title: str, service: str, operation: str, **given: object
    ) -> Callable[[], Awaitable[object]]:
        return lambda: self._api.find(service, operation, f"removing the {title}", **given)
