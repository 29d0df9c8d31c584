"""A password is where it is kept, and nowhere else: not in what a run writes, sends or prints."""

from __future__ import annotations

import json

import pytest

from tests.io.servers import ValkeyServer
from tests.jobs.harness import SMALL

SECRET = "hunter2-planted-secret"


@pytest.mark.slow
def test_nothing_that_a_run_writes_holds_the_secret(shell, account, bucket, tmp_path):
    account.client("secretsmanager").create_secret(Name="smlt/valkey", SecretString=SECRET)
    with ValkeyServer(tmp_path / "valkey.sock", "--requirepass", SECRET) as server:
        url = f"redis://127.0.0.1:{server.port}?password_from=secretsmanager:smlt/valkey"
        job = ("--objects", bucket, "--parameters", url, "--platform", "aws", "--yes", "--trace")
        # Functions ask the account for it, as they would ask AWS.
        account.function_variables["AWS_ENDPOINT_URL_SECRETS_MANAGER"] = account.endpoint
        ended = shell.smlt("train", SMALL, *job, "--workers", "2", "--steps", "5", "--json")
        account.function_variables.clear()
        ended.check(0)
    seen = [ended.out, ended.err, json.dumps(account.bodies)]
    seen += [p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file()]
    s3, name = account.client("s3"), bucket.split("/")[2]
    for entry in s3.list_objects_v2(Bucket=name)["Contents"]:
        body = s3.get_object(Bucket=name, Key=entry["Key"])["Body"].read()
        seen.append(body.decode("latin-1"))
    assert len(seen) > 20
    assert [text[:200] for text in seen if SECRET in text] == []
    configurations = account.client("lambda").list_functions()["Functions"]
    assert SECRET not in json.dumps(configurations, default=str)
    shell.smlt("destroy", "--objects", bucket).check(0)
