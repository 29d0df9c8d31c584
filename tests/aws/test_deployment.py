"""Each call that a deployment makes: what it asks for, and what becomes of it when AWS fails."""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import hashlib
import io
import json
import zipfile

import pytest

from smlt.aws.api import open_api
from smlt.aws.deployment import Deployment
from smlt.aws.policy import TRUST, permissions
from smlt.aws.release import Release
from smlt.aws.removal import Deployed
from smlt.errors import CloudError, ConfigError
from tests.aws.account import ACCOUNT, DENIED, REGION, THROTTLED
from tests.aws.lives import ACCESS_POINT

SIZE = 1769


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "def handler(event, context): return event\n")
    return buffer.getvalue()


@pytest.fixture
def release(account, bucket, monkeypatch):
    """A release whose zips are in the bucket."""
    for name, value in account.variables.items():
        monkeypatch.setenv(name, value)
    code, layer = zipped("app.py"), zipped("python/packages.py")
    digest = hashlib.sha256(code).hexdigest()
    where = bucket.removeprefix("s3://").partition("/")
    s3 = account.client("s3")
    s3.put_object(Bucket=where[0], Key=f"{where[2]}/code/{digest}.zip", Body=code)
    s3.put_object(Bucket=where[0], Key=f"{where[2]}/layers/abc.zip", Body=layer)
    yield Release(
        name=f"test-{where[0]}",
        region=REGION,
        objects=bucket,
        parameters="s3://shards/below",
        python="3.12",
        architecture="x86_64",
        code=digest,
        layer="abc",
    )
    account.heal()
    destroy(f"test-{where[0]}")


def deploy(release, *sizes):
    """Deploy, publish, and return what was done and the functions."""

    async def run():
        async with open_api(release.region) as api:
            deployment = await Deployment.open(api, release)
            changes = []
            await deployment.apply(sizes, told=changes.append)
            made = [await deployment.function(size, None) for size in sizes]
            return {change.title: change.what for change in changes}, made

    return asyncio.run(run())


def destroy(name):
    async def run():
        async with open_api(REGION) as api:
            removed = []
            await Deployed(api, name).remove(removed.append)
            return removed

    return asyncio.run(run())


def live(release):
    """Everything from nothing to nothing."""
    deploy(release, SIZE)
    destroy(release.name)


def test_what_is_made_is_what_a_job_needs(account, release):
    deploy(release, SIZE)
    api, name = account.client("lambda"), f"smlt-{release.name}-{SIZE}"
    function = api.get_function(FunctionName=name)
    configuration = function["Configuration"]
    assert configuration["MemorySize"] == SIZE
    assert configuration["Timeout"] == 900
    assert configuration["Runtime"] == "python3.12"
    assert configuration["Environment"]["Variables"]["OMP_NUM_THREADS"] == "1"
    assert configuration["Environment"]["Variables"]["ATEN_CPU_CAPABILITY"] == "avx2"
    assert function["Tags"] == {"smlt:deployment": release.name}
    events = api.get_function_event_invoke_config(FunctionName=name, Qualifier="1")
    assert (events["MaximumRetryAttempts"], events["MaximumEventAgeInSeconds"]) == (0, 60)
    assert account.recursion[name] == "Terminate"
    [group] = account.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")[
        "logGroups"
    ]
    assert group["retentionInDays"] == 14


def test_a_second_deployment_changes_nothing_and_another_release_only_what_differs(
    account, release
):
    deploy(release, SIZE)
    changes, _ = deploy(release, SIZE)
    assert not any(changes.values())
    other = dataclasses.replace(release, log_days=30, ephemeral_mb=1024)
    changes, [function] = deploy(other, SIZE)
    changed = {title: what for title, what in changes.items() if what}
    assert changed == {
        f"log group /aws/lambda/{function.name}": "keep logs for 30 days",
        f"function {function.name}": "update EphemeralStorage",
    }


def test_destruction_leaves_nothing_and_takes_nothing_of_a_namesake(account, release):
    deploy(release, SIZE, 512)
    api, iam = account.client("lambda"), account.client("iam")
    role = iam.get_role(RoleName=f"smlt-{release.name}")["Role"]["Arn"]
    namesake = f"smlt-{release.name}-mine"
    api.create_function(
        FunctionName=namesake,
        Runtime="python3.12",
        Role=role,
        Handler="a.b",
        Code={"ZipFile": zipped("a.py")},
    )
    removed = destroy(release.name)
    assert len(removed) == 6, removed
    left = [f["FunctionName"] for f in api.list_functions()["Functions"]]
    assert [name for name in left if release.name in name] == [namesake]
    api.delete_function(FunctionName=namesake)
    assert destroy(release.name) == []


@pytest.mark.slow
def test_a_version_that_is_not_what_the_plan_says_is_not_run(account, release):
    """Another client changes the function between our last look and the publication."""
    api, name = account.client("lambda"), f"smlt-{release.name}-{SIZE}"

    def meddle(service, operation):
        if operation == "PublishVersion":
            account.heal()
            api.update_function_configuration(FunctionName=name, MemorySize=512)

    account.before = meddle
    with pytest.raises(CloudError, match="published with the memory 512 instead of 1769"):
        deploy(release, SIZE)
    [function] = deploy(release, SIZE)[1]
    assert (function.version, function.memory_mb) == ("2", SIZE)


@pytest.mark.slow
def test_with_a_role_of_the_users_own_nothing_is_asked_of_iam(account, release):
    role = account.client("iam").create_role(
        RoleName="theirs", AssumeRolePolicyDocument=json.dumps(TRUST)
    )["Role"]["Arn"]

    def refuse(service, operation):
        if service == "iam":
            raise DENIED

    account.before = refuse
    deploy(dataclasses.replace(release, role=role), SIZE)

    async def run():
        async with open_api(REGION) as api:
            removed = []
            await Deployed(api, release.name, has_role=False).remove(removed.append)
            return removed

    removed = asyncio.run(run())
    assert [title.split()[0] for title in removed] == ["function", "log", "layer"]
    account.heal()
    account.client("iam").delete_role(RoleName="theirs")


def allows(policy, action, resource, **context):
    """Evaluate a policy as IAM does: an explicit denial wins, and what is not allowed is denied."""

    def applies(statement):
        if not any(fnmatch.fnmatchcase(action, pattern) for pattern in statement["Action"]):
            return False
        if not any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"]):
            return False
        tests = [test for part in statement.get("Condition", {}).values() for test in part.items()]
        return all(
            any(fnmatch.fnmatchcase(context.get(key, ""), pattern) for pattern in patterns)
            for key, patterns in tests
        )

    effects = {s["Effect"] for s in policy["Statement"] if applies(s)}
    return effects == {"Allow"}


def test_the_role_sees_its_prefix_and_its_logs_and_nothing_else():
    release = Release(
        name="mine",
        region=REGION,
        objects="s3://bucket/mine",
        parameters="rediss://cache:6379/0?password_from=secretsmanager:valkey",
        python="3.12",
        architecture="x86_64",
        code="",
        layer="",
        subnets=("subnet-1",),
        security_groups=("sg-1",),
        efs=ACCESS_POINT,
    )
    policy = permissions(release, ACCOUNT, "aws", REGION)
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert allows(policy, action, "arn:aws:s3:::bucket/mine/jobs/a/job.json")
        for other in ("bucket/mine2/a", "bucket/a", "bucket2/mine/a", "bucket/min"):
            assert not allows(policy, action, f"arn:aws:s3:::{other}")
    listing = "s3:ListBucket", "arn:aws:s3:::bucket"
    assert allows(policy, *listing, **{"s3:prefix": "mine/jobs/"})
    for prefix in ("", "mine2/", "other/"):
        assert not allows(policy, *listing, **{"s3:prefix": prefix})
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:"
    assert allows(policy, "secretsmanager:GetSecretValue", f"{secret}valkey-a1B2c3")
    assert not allows(policy, "secretsmanager:GetSecretValue", f"{secret}other-a1B2c3")
    groups = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda/"
    assert allows(policy, "logs:PutLogEvents", f"{groups}smlt-mine-1769:log-stream:a")
    assert not allows(policy, "logs:PutLogEvents", f"{groups}smlt-other-1769:log-stream:a")
    mount = {"elasticfilesystem:AccessPointArn": ACCESS_POINT}
    assert allows(policy, "elasticfilesystem:ClientMount", "*", **mount)
    assert not allows(policy, "elasticfilesystem:ClientMount", "*")
    assert not allows(policy, "elasticfilesystem:ClientWrite", "*", **mount)
    for action in ("iam:PassRole", "lambda:InvokeFunction", "s3:DeleteBucket", "sts:AssumeRole"):
        assert not allows(policy, action, "*")
    # Lambda makes interfaces by this role; code that runs in a function may not.
    inside = {"lambda:SourceFunctionArn": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:smlt-mine-1"}
    assert allows(policy, "ec2:CreateNetworkInterface", "*")
    assert not allows(policy, "ec2:CreateNetworkInterface", "*", **inside)
    assert "valkey" not in json.dumps(policy).replace("secret:valkey-??????", "")


def test_a_deployment_gets_through_a_busy_moment_and_says_what_it_may_not_do(account, release):
    busy = {("lambda", "CreateFunction"), ("iam", "GetRole")}

    def fail(service, operation):
        if (service, operation) in busy:
            busy.remove((service, operation))
            raise THROTTLED
        if operation == "PublishVersion":
            raise DENIED

    account.before = fail
    with pytest.raises(ConfigError, match=r"publishing .* do not allow PublishVersion \(as told\)"):
        deploy(release, SIZE)
    assert not busy
