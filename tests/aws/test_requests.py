"""Every request beside the one that was recorded, and both beside AWS's own description.

``record_requests.py`` writes the records. Here botocore's Stubber compares each request with its
own, and checks the answers, too, against the shapes that AWS publishes.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
from collections import defaultdict
from contextlib import AsyncExitStack

import aioboto3
import botocore.session
import pytest
from aiobotocore.stub import AioStubber
from botocore.config import Config
from botocore.validate import ParamValidator

from smlt.aws.api import Api
from smlt.control.lambda_client import LambdaClient
from smlt.errors import CloudError
from tests.aws import lives
from tests.aws.account import CREDENTIALS, REGION
from tests.aws.record_requests import BUCKET, DIGEST, RECORDS, SCENES

_DOCUMENTS = {"AssumeRolePolicyDocument", "PolicyDocument"}
_EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def restored(value):
    """What ``plain`` was given."""
    if isinstance(value, dict):
        if set(value) == {"base64"}:
            return base64.b64decode(value["base64"])
        return {k: restored(v) for k, v in value.items()}
    return [restored(one) for one in value] if isinstance(value, list) else value


def answered(value):
    """A recorded answer as it comes from AWS: policies are text there, and a role has its date."""
    if isinstance(value, dict):
        found = {k: answered(v) for k, v in value.items()}
        for name in _DOCUMENTS & found.keys():
            found[name] = json.dumps(found[name])
        return found | ({"CreateDate": _EPOCH} if "RoleId" in found else {})
    return [answered(one) for one in value] if isinstance(value, list) else value


class RecordedApi(Api):
    """Clients that answer from the records, each request in its turn, and refuse any other."""

    def __init__(self, calls, stack):
        super().__init__(REGION, stack)
        self.left = defaultdict(list)
        for call in calls:
            self.left[call["service"]].append(call)
        self.stubbers = {}

    async def _client(self, service):
        if service not in self._clients:
            self._clients[service] = await self._stubbed(service)
        return self._clients[service]

    async def _stubbed(self, service):
        config = Config(retries={"total_max_attempts": 1})
        context = self._session.client(service, config=config)
        client = await self._stack.enter_async_context(context)
        stubber = self.stubbers[service] = AioStubber(client)
        for call in self.left[service]:
            method = botocore.xform_name(call["operation"])
            params, response = restored(call["params"]), answered(restored(call["response"]))
            response["ResponseMetadata"] = {"HTTPStatusCode": 200, "HTTPHeaders": {}}
            if method == "invoke":
                response["Payload"] = _Body(b'{"errorMessage": "as recorded"}')
            if "error" in response:
                stubber.add_client_error(
                    method, response["error"], response["message"], 404, expected_params=params
                )
            else:
                stubber.add_response(method, response, params)
        stubber.activate()
        return client


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def records():
    return json.loads(RECORDS.read_text())


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_asks_what_was_recorded(scene):
    async def play():
        async with AsyncExitStack() as stack:
            api = RecordedApi(records()[scene], stack)
            await getattr(lives, scene)(api, lives.a_release(BUCKET, DIGEST))
            for stubber in api.stubbers.values():
                stubber.assert_no_pending_responses()
            assert set(api.stubbers) == set(api.left)

    asyncio.run(play())


def test_every_recorded_request_is_one_that_aws_describes():
    session, kinds = botocore.session.get_session(), set()
    for calls in records().values():
        for call in calls:
            model = session.get_service_model(call["service"])
            shape = model.operation_model(call["operation"]).input_shape
            params = restored(call["params"])
            if shape is None:
                assert not params
            else:
                report = ParamValidator().validate(params, shape)
                assert not report.has_errors(), report.generate_report()
                # The validator passes over names that it does not know.
                assert set(params) <= set(shape.members), call
            kinds.add((call["service"], call["operation"]))
    assert len(kinds) > 35


def test_no_recorded_event_is_retried_and_versions_never_are_latest():
    calls = [call for scene in records().values() for call in scene]
    configs = [c["params"] for c in calls if c["operation"] == "PutFunctionEventInvokeConfig"]
    assert configs
    assert all(c["MaximumRetryAttempts"] == 0 for c in configs)
    assert all(c["MaximumEventAgeInSeconds"] == 60 for c in configs)
    recursion = [c["params"] for c in calls if c["operation"] == "PutFunctionRecursionConfig"]
    assert {c["RecursiveLoop"] for c in recursion} == {"Terminate"}
    reserved = [c["params"] for c in calls if c["operation"] == "PutFunctionConcurrency"]
    assert [c["ReservedConcurrentExecutions"] for c in reserved] == [5, 2]  # workers, gateway
    made = [c["params"] for c in calls if c["operation"] == "CreateFunction"]
    networks = [c["VpcConfig"] for c in made if c["VpcConfig"]["SubnetIds"]]
    assert networks[0] == {"SubnetIds": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert all("Runtime" not in c for c in made if c["PackageType"] == "Image")


def test_what_a_running_job_asks():
    async def play():
        session = aioboto3.Session(region_name=REGION)
        async with session.client("lambda") as functions, session.client("logs") as logs:
            asked, read = AioStubber(functions), AioStubber(logs)
            event = {"FunctionName": "f", "Qualifier": "3"}
            asked.add_response(
                "invoke",
                {"StatusCode": 202, "ResponseMetadata": {"RequestId": "r"}},
                {**event, "InvocationType": "Event", "Payload": b'{"job_id": "a", "rank": 0}'},
            )
            body = _Body(b'{"gateway": "answer"}')
            tail = base64.b64encode(b"REPORT RequestId: r\tBilled Duration: 7 ms\t").decode()
            asked.add_response(
                "invoke",
                {"StatusCode": 200, "LogResult": tail, "Payload": body},
                {**event, "LogType": "Tail", "Payload": b'{"gateway": "question"}'},
            )
            wanted = {"logGroupName": "/aws/lambda/f", "startTime": 1_700_000_000_000}
            found = {"logStreamName": "s", "timestamp": 1_700_000_000_001, "message": "hello"}
            read.add_response("filter_log_events", {"events": [found], "nextToken": "n"}, wanted)
            read.add_response("filter_log_events", {"events": []}, {**wanted, "nextToken": "n"})
            with asked, read:
                await lives.running(functions, logs, "f", "3")
            asked.assert_no_pending_responses()
            read.assert_no_pending_responses()

    asyncio.run(play())


def test_a_gateway_that_fails_says_why():
    async def play():
        session = aioboto3.Session(region_name=REGION)
        async with session.client("lambda") as functions:
            asked = AioStubber(functions)
            said = b'{"errorType": "Runtime.ExitError", "errorMessage": "Task timed out"}'
            asked.add_response(
                "invoke", {"StatusCode": 200, "FunctionError": "Unhandled", "Payload": _Body(said)}
            )
            with asked, pytest.raises(CloudError, match="calling g failed: Task timed out"):
                await LambdaClient(functions, None).call("g", "1", {}, 10.0)

    asyncio.run(play())


class _Body:
    def __init__(self, data):
        self._data = data

    async def read(self):
        return self._data
