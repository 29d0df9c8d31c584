"""The embedded Lambda: a warm invocation beside a bare round trip, and a cold start.

Target: a warm RequestResponse invocation takes at most 3 times a bare boto3 round trip to the same
endpoint (DryRun). The pairs are interleaved, so that both see the same machine.
"""

import asyncio
import io
import statistics
import time
import zipfile

import boto3
import pytest
from botocore.config import Config

from smlt.embedded import EmbeddedCloud

PAIRS = 300
HANDLER = "def handler(event, context): return event"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with asyncio.Runner() as runner:
        cloud = EmbeddedCloud(tmp_path_factory.mktemp("run"), parameter_store=False)
        runner.run(cloud.__aenter__())
        try:
            yield boto3.client(
                "lambda",
                endpoint_url=cloud.endpoint,
                region_name="us-east-1",
                aws_access_key_id="x",
                aws_secret_access_key="x",
                config=Config(retries={"total_max_attempts": 1}),
            )
        finally:
            runner.run(cloud.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def function(client):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("app.py", HANDLER)
    client.create_function(
        FunctionName="echo",
        Runtime="python3.11",
        Role="arn:aws:iam::000000000000:role/bench",
        Handler="app.handler",
        Code={"ZipFile": body.getvalue()},
        MemorySize=1769,
        Timeout=10,
    )
    return "echo"


def invoke(client, function, kind):
    answer = client.invoke(FunctionName=function, InvocationType=kind, Payload=b"{}")
    return answer["Payload"].read()


def bench_warm_invoke(benchmark, client, function):
    invoke(client, function, "RequestResponse")
    benchmark(invoke, client, function, "RequestResponse")


def bench_bare_round_trip(benchmark, client, function):
    benchmark(invoke, client, function, "DryRun")


def bench_warm_invoke_over_round_trip(benchmark, client, function):
    """The ratio of the medians of interleaved pairs, held to the target."""
    seconds = {"DryRun": [], "RequestResponse": []}
    invoke(client, function, "RequestResponse")

    def run_pairs():
        for _ in range(PAIRS):
            for kind, times in seconds.items():
                begun = time.perf_counter()
                invoke(client, function, kind)
                times.append(time.perf_counter() - begun)

    benchmark.pedantic(run_pairs, rounds=1)
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    ratio = medians["RequestResponse"] / medians["DryRun"]
    benchmark.extra_info.update(
        ratio=round(ratio, 2), **{f"{kind}_ms": round(s * 1e3, 2) for kind, s in medians.items()}
    )
    print(f"\nwarm invoke / round trip = {ratio:.2f} (target <= 3), medians {medians}")
    assert ratio <= 3.0


def bench_cold_start(benchmark, client, function):
    """From an update, which retires the warm environment, to the first answer."""

    def retire():
        client.update_function_configuration(FunctionName=function, Timeout=10)

    invoke_cold = (client, function, "RequestResponse")
    benchmark.pedantic(invoke, invoke_cold, setup=retire, rounds=10)
