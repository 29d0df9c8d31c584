"""A thousand workers from one client, of a service that lets them in only so fast."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import urllib.request
from pathlib import Path

import pytest

from benchmarks.bench_supervision import supervise
from smlt.control.lambda_client import Endpoint, lambda_client
from smlt.embedded.valkey_server import ValkeyServer
from smlt.messages.job import Limits

ROOT = Path(__file__).parents[2]
WORKERS, AT_ONCE, PER_SECOND = 1000, 200, 25
# All workers are in one process, which shares this machine with others.
PATIENT = Limits(start_s=200, lease_s=90, client_lease_s=60, orphan_s=60)


def counted(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_thousand_workers_get_in_through_a_narrow_door(tmp_path):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def run():
        async with ValkeyServer(tmp_path, env=dict(os.environ)) as server:
            words = (server.url, WORKERS, AT_ONCE, PER_SECOND)
            service = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.aws.throttling_lambda", *map(str, words)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
            try:
                port = int(await service.stdout.readline())
                url = f"http://127.0.0.1:{port}"
                endpoint = Endpoint(url=url, region="us-east-1", access_key="a", secret_key="b")
                async with lambda_client(endpoint) as cloud:
                    result = await supervise(tmp_path, server.url, cloud, WORKERS, 10.0, PATIENT)
                return result, await asyncio.to_thread(counted, f"{url}/counts")
            finally:
                service.stdin.close()
                await service.wait()

    result, counts = asyncio.run(run())
    # One worker for each rank, although most of them were refused at first.
    assert counts["taken"] == WORKERS
    assert counts["throttled"] > 0
    assert counts["at_once"] <= 64
    # Refusals cost time, but not a storm of calls: few for each worker.
    assert counts["throttled"] < 5 * WORKERS
    print(json.dumps(result | counts, indent=1))
