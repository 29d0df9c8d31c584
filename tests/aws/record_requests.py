"""Writes down what smlt asks of AWS, scene by scene, and what the tests' account answers.

    python -m tests.aws.record_requests

What has changed is then seen in the difference of ``tests/data/aws_requests.json``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from smlt.aws.api import Api
from tests.aws import lives
from tests.aws.account import REGION, aws_account

RECORDS = Path(__file__).parents[1] / "data" / "aws_requests.json"
BUCKET = "recorded-requests"
CODE = lives.zipped("app.py")
DIGEST = hashlib.sha256(CODE).hexdigest()
SCENES = (
    "deploying",
    "deploying_again",
    "changing",
    "examining",
    "destroying",
    "deploying_an_image",
)
# What an answer says of times and of the account's server, and no code reads.
_DROPPED = {"ResponseMetadata", "LastModified", "CreatedDate", "creationTime", "createdAt",
            "imagePushedAt", "expiresAt", "CreateDate", "RoleLastUsed"}  # fmt: skip


class Recorder:
    """Writes down what clients ask and are answered."""

    def __init__(self):
        self.calls = []

    def watch(self, client):
        events = client.meta.events
        events.register("before-parameter-build", self._asked)
        events.register("after-call", self._answered)

    def _asked(self, params, model, **_):
        self.calls.append({"service": model.service_model.service_name, "operation": model.name,
                           "params": plain(params)})  # fmt: skip

    def _answered(self, parsed, model, http_response, **_):
        call = next(c for c in reversed(self.calls)
                    if c["operation"] == model.name and "response" not in c)  # fmt: skip
        if http_response.status_code >= 300:
            error = parsed["Error"]
            call["response"] = {"error": error["Code"], "message": error["Message"]}
        else:
            call["response"] = plain(parsed)


def plain(value):
    """Something as JSON takes it, without what changes from run to run."""
    if isinstance(value, dict):
        kept = {str(k): plain(v) for k, v in value.items() if k not in _DROPPED}
        return {k: v for k, v in kept.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value if isinstance(value, str | int | float | bool) else None


class WatchedApi(Api):
    """Clients of the account, with a recorder at each."""

    def __init__(self, recorder, stack):
        super().__init__(REGION, stack)
        self._recorder = recorder

    async def _client(self, service):
        is_new = service not in self._clients
        client = await super()._client(service)
        if is_new:
            self._recorder.watch(client)
        return client


def record(account, folder):
    os.environ |= account.variables
    s3 = account.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=f"here/code/{DIGEST}.zip", Body=CODE)
    s3.put_object(Bucket=BUCKET, Key="here/layers/abc.zip", Body=lives.zipped("python/p.py"))

    account.images = folder
    context = folder / lives.IMAGE
    (context / "code").mkdir(parents=True)
    (context / "code" / "app.py").write_bytes(b"")
    (context / "Dockerfile").write_text("COPY code/ /var/task/")

    def pushed(name):
        repository, _, tag = name.partition("/")[2].rpartition(":")
        account.client("ecr").put_image(
            repositoryName=repository,
            imageTag=tag,
            imageManifest=json.dumps({"schemaVersion": 2, "layers": []}),
            imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
        )

    async def play(scene):
        recorder = Recorder()
        async with AsyncExitStack() as stack:
            api = WatchedApi(recorder, stack)
            more = [lives.SilentDocker(pushed)] if scene == "deploying_an_image" else []
            await getattr(lives, scene)(api, lives.a_release(BUCKET, DIGEST), *more)
        return recorder.calls

    found = {scene: asyncio.run(play(scene)) for scene in SCENES}
    RECORDS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="aws-") as name, aws_account(Path(name)) as made:
        record(made, Path(name) / "images")
