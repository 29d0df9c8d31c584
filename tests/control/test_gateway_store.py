"""The parameter store through a function: the contract, what a call costs, what fails how."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode

import msgpack
import pytest

from smlt.control.gateway_store import GatewayStore
from smlt.control.lambda_client import Answer
from smlt.errors import CloudError, ConfigError, StoreError, StoreLostError, StoreUnreachableError
from smlt.io import gateway
from smlt.io.memory_contents import forget
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.parameter_store import Notice

URL = "redis://private:6379"
POLL_S = 0.05


class Function:
    """Answers as the function does, from a store in memory; what crosses is JSON."""

    def __init__(self, name):
        self.store = MemoryParameterStore(name)
        self.calls = []
        self.faults = []
        self.under_way = self.most = 0

    async def __call__(self, event, limit_s):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.002)
            if self.faults:
                raise self.faults.pop(0)
            url, _, calls = gateway.read_question(json.loads(json.dumps(event)))
            assert url == URL
            self.calls.append([operation for operation, _ in calls])
            said = await gateway.answer(self.store, calls)
            return Answer(json.loads(json.dumps(said)), billed_ms=3)
        finally:
            self.under_way -= 1


@pytest.fixture
def function(request):
    name = request.node.name
    yield Function(name)
    forget(name)


def opened(function, **options):
    return GatewayStore(URL, function, **{"time_limit_s": 5.0, "poll_s": POLL_S, **options})


def test_a_clients_life_of_a_generation(function):
    async def scenario():
        async with opened(function) as store:
            with pytest.raises(StoreLostError, match="lost the marker g"):
                await store.check("g")
            await store.mark("g", ttl_s=60)
            await store.check("g")
            reading = asyncio.create_task(store.read({"control": "0-0", "x": "0"}, wait_s=20))
            await asyncio.sleep(3 * POLL_S)
            # Another process: a worker.
            await function.store.announce("control", {"event": b"\x00\xff"}, guard="g")
            [notice] = await reading
            assert notice.stream == "control"
            assert notice.fields == {"event": b"\x00\xff"}
            wanted = {"guard": "g", "ttl_s": 60, "stream": "control", "fields": {"a": b"b"}}
            assert await store.first("abort", b"1", **wanted) == b"1"
            assert await store.first("abort", b"2", **wanted) == b"1"
            [second] = await store.read({"control": notice.id}, wait_s=0)
            assert second.fields == {"a": b"b"}
            await store.announce("control", {"c": b""}, guard="g", ttl_s=60)
            await store.renew("lease", b"alive", ttl_s=60)
            assert await store.values(["lease", "none"]) == [b"alive", None]
            await store.discard(["lease"])
            assert await store.values(["lease"]) == [None]
            await store.sweep("")
            with pytest.raises(StoreLostError):
                await store.check("g")

    asyncio.run(scenario())


def test_the_function_takes_no_frames():
    async def scenario():
        asked = [("put", {"key": "k"}), ("get", {"key": "k"}), ("close", {})]
        return gateway.read_answer(await gateway.answer(MemoryParameterStore("frameless"), asked))

    for refusal in asyncio.run(scenario()):
        assert isinstance(refusal, StoreError)
        assert "does not go through the gateway" in str(refusal)


def test_what_is_asked_together_goes_in_one_call_and_looks_wait_for_their_turn(function):
    billed = []

    async def scenario():
        async with opened(function, billed=billed.append, poll_s=0.2) as store:
            await asyncio.gather(*(store.renew(f"k{i}", b"", ttl_s=60) for i in range(50)))
            loop = asyncio.get_running_loop()
            begin = loop.time()
            assert await store.read({"s": "0"}, wait_s=1.0) == []
            return loop.time() - begin

    seconds = asyncio.run(scenario())
    assert function.most == 1
    writes = [call for call in function.calls if "renew" in call]
    assert sum(map(len, writes)) == 50
    assert len(writes) <= 2
    looks = [call for call in function.calls if "read" in call]
    # One at once, and no more than one in each 0.2 s after it.
    assert 2 <= len(looks) <= 2 + seconds / 0.2
    assert billed == [3] * len(function.calls)


def test_a_call_that_fails_is_repeated_until_the_limit(function):
    function.faults = [CloudError("calling g failed: TooManyRequestsException")] * 3

    async def scenario():
        async with opened(function) as store:
            await store.renew("k", b"1", ttl_s=60)
            assert await store.values(["k"]) == [b"1"]
        function.faults = [CloudError("calling g failed: no answer")] * 1000
        async with opened(function, time_limit_s=0.3) as store:
            calls = [store.values(["k"]), store.read({"s": "0"}, wait_s=10)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, StoreUnreachableError) for error in errors)
        assert "no answer" in str(errors[0])
        function.faults = [ConfigError("calling g failed: not allowed")]
        async with opened(function) as store:
            with pytest.raises(ConfigError, match="not allowed"):
                await store.values(["k"])
            assert await store.values(["k"]) == [b"1"]

    asyncio.run(scenario())


def test_a_caller_that_was_cancelled_leaves_the_client_usable(function):
    async def scenario():
        async with opened(function) as store:
            for i in range(20):
                calls = [store.renew("k", b"", ttl_s=60), store.read({"s": "0"}, wait_s=60)]
                tasks = [asyncio.create_task(call) for call in calls]
                for _ in range(i):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await store.renew("k", b"after", ttl_s=60)
            assert await store.values(["k"]) == [b"after"]

    asyncio.run(scenario())


class _Full:
    async def read(self, after, *, wait_s, limit):
        return [Notice("s", str(i), {"x": bytes(1 << 20)}) for i in range(20)]


def test_an_answer_is_no_larger_than_lambda_lets_through():
    async def scenario():
        read = ("read", {"after": {"s": "0"}, "wait_s": 0, "limit": 1000})
        said = await gateway.answer(_Full(), [read])
        assert len(json.dumps(said)) < 6 << 20
        [notices] = gateway.read_answer(said)
        assert [notice.id for notice in notices] == ["0", "1", "2"]
        # One that is larger than its share is not held back for ever.
        [notices, *_] = gateway.read_answer(await gateway.answer(_Full(), [read] * 5))
        assert [notice.id for notice in notices] == ["0"]

    asyncio.run(scenario())


def test_nothing_but_operations_on_the_store_can_be_called(function):
    async def scenario():
        for name in ("close", "__class__", "put", "_contents"):
            said = await gateway.answer(function.store, [(name, {})])
            [error] = gateway.read_answer(said)
            assert isinstance(error, StoreError)
            assert "does not go through" in str(error)

    asyncio.run(scenario())
    for kind in ("SystemExit", "annotations"):
        packed = b64encode(msgpack.packb([[kind, False, "x"]])).decode()
        [error] = gateway.read_answer({gateway.GATEWAY: packed})
        assert type(error) is StoreError
