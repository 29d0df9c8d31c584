"""A deployment's place for container images, and the image that its functions run."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from tempfile import TemporaryDirectory

from smlt.aws.api import Api
from smlt.aws.docker import Docker
from smlt.aws.image import platform_of, write_context
from smlt.aws.package import Package
from smlt.aws.release import Release
from smlt.aws.resources import Account, packed, tag_list
from smlt.errors import CloudError

_PULL = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "smlt",
            "Effect": "Allow",
            "Principal": {"Service": "lambda.amazonaws.com"},
            "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
        }
    ],
}


class Repository:
    """Keeps a deployment's images, and lets Lambda read them."""

    def __init__(self, api: Api, release: Release) -> None:
        self._api = api
        self._release = release
        self._name = release.repository_name
        self.title = f"repository {self._name}"

    async def look(self) -> str:
        found = await self._api.all(
            "ecr",
            "describe_repositories",
            f"looking at the {self.title}",
            "repositories",
            repositoryNames=[self._name],
        )
        return "" if found else "create it"

    async def bring(self) -> None:
        doing, name = f"making the {self.title}", {"repositoryName": self._name}
        tags = tag_list(self._release.tags)
        await self._api.call("ecr", "create_repository", doing, **name, tags=tags)
        await self._api.call(
            "ecr", "set_repository_policy", doing, **name, policyText=packed(_PULL)
        )


class Image:
    """The image of a release: built and pushed by whoever has the package, used by all."""

    def __init__(
        self, api: Api, release: Release, account: Account, package: Package | None
    ) -> None:
        self._api = api
        self._tag = release.image
        self._name = release.repository_name
        self._package = package
        self._registry = f"{account.number}.dkr.ecr.{account.region}.{account.domain}"
        self.uri = f"{self._registry}/{self._name}:{self._tag}"
        self.title = f"image {self._name}:{self._tag}"

    async def look(self) -> str:
        found = await self._api.find(
            "ecr",
            "describe_images",
            f"looking at the {self.title}",
            repositoryName=self._name,
            imageIds=[{"imageTag": self._tag}],
        )
        if found and found["imageDetails"]:
            return ""
        if self._package is None:
            raise CloudError(f"the {self.title} is gone: deploy again")
        return "build and push it"

    async def bring(self) -> None:
        """Build the image and push it.

        Raises:
            ConfigError: there is no Docker.
            CloudError: Docker failed.
        """
        if self._package is None:
            raise CloudError(f"the {self.title} is gone: deploy again")
        docker = Docker()
        with TemporaryDirectory(prefix="smlt-image-") as folder:
            write_context(self._package, Path(folder))
            await docker.build(Path(folder), self.uri, platform_of(self._package))
        doing = "asking ECR for a password"
        answer = await self._api.call("ecr", "get_authorization_token", doing)
        token = b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
        user, _, password = token.partition(":")
        await docker.login(self._registry, user, password)
        await docker.push(self.uri)
