"""Each call that smlt makes to AWS, failing in each way: repeated, or told in one sentence."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from smlt.aws import api as api_of_smlt
from smlt.aws.api import open_api
from smlt.aws.doctor import examine
from smlt.aws.removal import Deployed
from smlt.control import lambda_client as client_of_smlt
from smlt.control.lambda_client import Endpoint, lambda_client
from smlt.errors import SmltError
from smlt.io.secret import SecretAddress
from tests.aws import lives
from tests.aws.account import BROKEN, CUT, DENIED, REGION, SILENT, THROTTLED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KINDS = {
    "throttled": THROTTLED,
    "broken": BROKEN,
    "cut": CUT,
    "silent": SILENT,
    "denied": DENIED,
}
WORDS = {
    "throttled": "too busy",
    "broken": "too busy",
    "cut": "closed",
    "silent": "timeout",
    "denied": "do not allow",
}
QUICK = {"_ATTEMPTS": 2, "_READ_S": 0.4}


@pytest.fixture(autouse=True)
def _settings(account, monkeypatch):
    for name, value in account.variables.items():
        monkeypatch.setenv(name, value)
    yield
    account.heal()


@pytest.fixture
def release(account, bucket, tmp_path):
    """A release whose zips are in the bucket, and whose image can be pushed."""
    code = lives.zipped("app.py")
    name = bucket.split("/")[2]
    digest = hashlib.sha256(code).hexdigest()
    s3 = account.client("s3")
    s3.put_object(Bucket=name, Key=f"here/code/{digest}.zip", Body=code)
    s3.put_object(Bucket=name, Key="here/layers/abc.zip", Body=lives.zipped("python/p.py"))
    account.images = tmp_path
    context = tmp_path / lives.IMAGE
    (context / "code").mkdir(parents=True)
    (context / "code" / "app.py").write_bytes(b"")
    (context / "Dockerfile").write_text("COPY code/ /var/task/")
    return lives.a_release(name, digest, name=f"faults-{name}")


def play(account, scene, release):
    """Play a scene; for an image, with a Docker whose push is made known."""

    def pushed(name):
        repository, _, tag = name.partition("/")[2].rpartition(":")
        account.client("ecr").put_image(
            repositoryName=repository,
            imageTag=tag,
            imageManifest=json.dumps({"schemaVersion": 2, "layers": []}),
            imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
        )

    async def run():
        async with open_api(REGION) as api:
            more = [lives.SilentDocker(pushed)] if scene == "deploying_an_image" else []
            await getattr(lives, scene)(api, release, *more)

    asyncio.run(run())


def is_ours(service, operation):
    """S3 has tests of its own, and images are pushed by Docker."""
    return service != "s3" and operation != "PutImage"


def clear(account, release):
    async def run():
        async with open_api(REGION) as api:
            for name in (release.name, f"{release.name}-image"):
                await Deployed(api, name).remove()

    account.heal()
    asyncio.run(run())


def failing(wanted, fault):
    def before(service, operation):
        if (service, operation) == wanted:
            raise fault

    return before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scene", ["deploying", "changing", "destroying", "deploying_an_image"])
def test_a_fault_that_stays_is_told_in_one_sentence(account, release, monkeypatch, scene, kind):
    def prepare():
        if scene in ("changing", "destroying"):
            play(account, "deploying", release)

    prepare()
    begin = len(account.calls)
    play(account, scene, release)
    calls = [call for call in dict.fromkeys(account.calls[begin:]) if is_ours(*call)]
    assert len(calls) >= 8, calls
    clear(account, release)
    if (scene, kind) == ("destroying", "denied"):
        calls.remove(("ecr", "DescribeRepositories"))  # only who deploys images must be allowed it
    for call in calls:
        prepare()
        for name, value in QUICK.items():
            monkeypatch.setattr(api_of_smlt, name, value)
        account.before = failing(call, KINDS[kind])
        with pytest.raises(SmltError) as caught:
            play(account, scene, release)
        text = str(caught.value)
        assert "\n" not in text
        assert WORDS[kind] in text, (call, text)
        if kind == "denied":
            assert call[1] in text, (call, text)
        for name, value in {"_ATTEMPTS": 6, "_READ_S": 60.0}.items():
            monkeypatch.setattr(api_of_smlt, name, value)
        clear(account, release)


@pytest.mark.parametrize("scene", ["deploying", "changing", "deploying_an_image"])
def test_a_fault_that_passes_is_got_over(account, release, monkeypatch, scene):
    """Each kind of call once throttled, once broken, once cut, and once not answered."""
    monkeypatch.setattr(api_of_smlt, "_READ_S", 0.8)
    if scene == "changing":
        play(account, "deploying", release)
    failed = {}

    def before(service, operation):
        number = failed.get((service, operation), 0)
        failed[service, operation] = number + 1
        if is_ours(service, operation) and number < 4:
            raise (THROTTLED, BROKEN, CUT, SILENT)[number]

    account.before = before
    play(account, scene, release)
    assert len(failed) >= 8, failed
    clear(account, release)


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_tells_of_every_call_that_fails(account, release, monkeypatch, kind):
    play(account, "deploying", release)
    for name, value in QUICK.items():
        monkeypatch.setattr(api_of_smlt, name, value)

    def asked():
        async def run():
            async with open_api(REGION) as api:
                return await examine(api, release.name, "memory://doctor", None, 4)

        return asyncio.run(run())

    begin = len(account.calls)
    asked()
    for call in dict.fromkeys(account.calls[begin:]):
        account.before = failing(call, KINDS[kind])
        faults = [finding for finding in asked() if not finding.ok]
        assert any(WORDS[kind] in finding.detail for finding in faults), (call, faults)
        assert not any("\n" in finding.detail for finding in faults)
        account.heal()
    clear(account, release)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("doing", ["invoke", "call", "log_events"])
def test_a_running_job_s_calls_end_soon_and_in_one_sentence(account, monkeypatch, doing, kind):
    monkeypatch.setattr(client_of_smlt, "_SEND_S", 1.0)
    given = {
        "invoke": ("f", "1", {}),
        "call": ("f", "1", {}, 1.0),
        "log_events": ("f", 0),
    }[doing]
    account.before = lambda service, operation: (_ for _ in ()).throw(KINDS[kind])

    async def run():
        async with asyncio.timeout(60), lambda_client(Endpoint(region=REGION)) as client:
            with pytest.raises(SmltError) as caught:
                await getattr(client, doing)(*given)
            return str(caught.value)

    begin = len(account.calls)
    text = asyncio.run(run())
    assert "\n" not in text
    assert " failed: " in text
    if doing != "log_events":
        # Never repeated by the client library: twice sent is two workers.
        assert len(account.calls) - begin == 1


@pytest.mark.parametrize("kind", ["throttled", "broken", "cut", "denied"])
@pytest.mark.parametrize("where", ["secretsmanager:valkey", "ssm:/valkey"])
def test_a_password_that_cannot_be_read_is_told_in_one_sentence(account, where, kind):
    account.before = lambda service, operation: (_ for _ in ()).throw(KINDS[kind])
    with pytest.raises(SmltError) as caught:
        SecretAddress.parse(where).read()
    assert "\n" not in str(caught.value)
    assert "valkey" in str(caught.value)
