"""S3 as the parameter store: the contract as far as a bucket can keep it, faults, and requests."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

import pytest
from parameter_store_contract import FOREVER, ParameterStoreContract, keys_of, mark, put
from s3_servers import CutError, Fault
from servers import eventually

from smlt.errors import StoreLostError, StoreUnreachableError
from smlt.io.s3_address import S3Address
from smlt.io.s3_client import S3Client
from smlt.io.s3_expiring import ExpiringObjects
from smlt.io.s3_notices import NoticeName
from smlt.io.s3_parameters import S3ParameterStore
from smlt.io.s3_polling import Pace
from smlt.io.s3_seen import SeenStream
from smlt.io.s3_streams import S3Streams
from smlt.io.stores import open_parameter_store

_numbers = itertools.count()

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture
def bucket(moto):
    yield moto.bucket(f"parameters-{next(_numbers)}").replace("?", "/some prefix?")
    moto.heal()


@pytest.fixture
def opened(bucket):
    return lambda time_limit_s=30: open_parameter_store(bucket, time_limit_s=time_limit_s)


@pytest.mark.slow
class TestS3ParameterStore(ParameterStoreContract):
    @pytest.fixture
    def opened(self, bucket):
        return lambda: open_parameter_store(bucket, time_limit_s=30)

    # Notices that a client has seen do not expire for it; frames and markers do all the same.
    test_frames_streams_and_markers_expire = None
    # 400 requests and more: below, with fewer.
    test_a_stream_keeps_its_last_notices = None


def test_frames_and_markers_expire_by_the_bucket_s_clock(opened, name):
    async def scenario():
        async with opened() as store:
            await store.mark(f"{name}guard", ttl_s=0.5)
            await put(store, name, ttl_s=0.3)

            async def gone():
                return await store.get(f"{name}k") is None

            await eventually(gone)

            async def lost():
                try:
                    await store.check(f"{name}guard")
                except StoreLostError:
                    return True

            await eventually(lost)

    asyncio.run(scenario())


def test_an_expired_winner_is_replaced_once(opened, name):
    async def scenario():
        async with opened() as store, opened() as twin:
            await mark(store, name)
            await store.renew(f"{name}f", b"old", ttl_s=0.1)

            async def over():
                return await store.values([f"{name}f"]) == [None]

            await eventually(over)
            stands = await asyncio.gather(
                *(
                    client.first(f"{name}f", b"%d" % i, guard=f"{name}guard", ttl_s=FOREVER)
                    for i, client in enumerate([store, twin] * 3)
                )
            )
            assert len(set(stands)) == 1
            assert stands[0] != b"old"

    asyncio.run(scenario())


def test_a_winner_whose_answer_was_lost_wins_and_says_so(moto, opened, name):
    async def scenario():
        async with opened() as store, opened() as reader:
            await mark(store, name)
            cut = iter([True])

            def fail(method, path):
                if method == "PUT" and next(cut, False):
                    raise CutError

            moto.after = fail
            fields = {"key": b"mine"}
            guard, stream = f"{name}guard", f"{name}s"
            stands = await store.first(
                f"{name}f", b"mine", guard=guard, ttl_s=FOREVER, stream=stream, fields=fields
            )
            assert stands == b"mine"
            assert set(await keys_of(reader, stream)) == {"mine"}

    asyncio.run(scenario())


def test_old_notices_are_trimmed_and_new_readers_see_the_rest(opened, name):
    async def scenario():
        async with opened() as store, opened() as reader:
            await mark(store, name)
            for i in range(25):
                await put(store, name, f"k{i}", maxlen=10)
            kept = await keys_of(reader, f"{name}stream")
            assert kept[-10:] == [f"k{i}" for i in range(15, 25)]
            assert len(kept) < 25

    asyncio.run(scenario())


def test_all_readers_see_announcements_in_one_order(opened, name):
    async def scenario():
        async with opened() as one, opened() as two, opened() as reader:
            await mark(one, name)
            await asyncio.gather(
                *(
                    client.announce(f"{name}s", {"key": b"%d" % i}, guard=f"{name}guard")
                    for i, client in enumerate([one, two] * 6)
                )
            )
            orders = [await keys_of(client, f"{name}s") for client in (one, two, reader)]
            assert sorted(orders[0], key=int) == [str(i) for i in range(12)]
            assert orders[0] == orders[1] == orders[2]

    asyncio.run(scenario())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_faults_lose_and_repeat_nothing(moto, opened, name, after):
    count = itertools.count()

    def fail(method, path):
        number = next(count)
        if number % 5 == 2:
            raise CutError if number % 2 else Fault(503, "SlowDown")

    async def scenario():
        async with opened() as store, opened() as reader:
            await mark(store, name)
            setattr(moto, "after" if after else "before", fail)
            for i in range(8):
                await put(store, name, f"{i}", [b"%d" % i])
            assert sorted(set(await keys_of(reader, f"{name}stream"))) == list("01234567")
            assert [await reader.get(f"{name}{i}") for i in range(8)] == [
                b"%d" % i for i in range(8)
            ]

    asyncio.run(scenario())


def test_waiting_costs_a_listing_a_stream_less_and_less_often(opened, name):
    async def scenario():
        async with opened() as store:
            assert isinstance(store, S3ParameterStore)
            began = time.monotonic()
            assert await store.read({f"{name}a": "0", f"{name}b": "0"}, wait_s=2.0) == []
            assert time.monotonic() - began >= 1.9
            assert 4 <= store.requests["ListObjectsV2"] <= 20
            assert set(store.requests) == {"ListObjectsV2"}

    asyncio.run(scenario())


def test_a_stream_on_demand_is_listed_while_somebody_waits(opened, name):
    async def scenario():
        async with opened() as store, opened() as writer:
            await mark(writer, name)
            stream = f"{name}stream"
            store.on_demand([stream])
            reading = asyncio.create_task(store.read({stream: "0"}, wait_s=60))

            async def looked():
                return store.requests["ListObjectsV2"] > 1

            with store.expecting(stream):
                await eventually(looked)
            before = store.requests["ListObjectsV2"]
            await put(writer, name, "k")
            await asyncio.sleep(0.5)
            assert store.requests["ListObjectsV2"] <= before + 1  # one was under way
            with store.expecting(stream):
                assert [notice.fields["key"] for notice in await reading] == [b"k"]

    asyncio.run(scenario())


def test_readers_of_one_client_share_their_looks(opened, name):
    async def scenario():
        async with opened() as store:
            streams = {f"{name}control": "0", f"{name}data": "0"}
            await asyncio.gather(*(store.read(streams, wait_s=1.0) for _ in range(5)))
            assert store.requests["ListObjectsV2"] <= 2 * 10 + 5 * 2

    asyncio.run(scenario())


def test_the_pace_slackens_and_quickens():
    pace, now, looks = Pace(0.0), 0.0, []
    pace.on_demand = True
    pace.begin(0.0)
    while now < 100:
        pace.looked(now, found=False)
        looks.append(now)
        now = pace.due
    assert looks[1] == 0.05
    assert 8 <= sum(look < 2 for look in looks) <= 12
    assert looks[-1] - looks[-2] == 2.0
    pace.looked(now, found=True)
    assert pace.due == now + 0.05
    pace.end()
    assert pace.due == float("inf")
    pace.begin(now + 10)
    assert pace.due == now + 0.05  # at once
    pace.end()
    assert pace.due == float("inf")


def test_a_put_is_two_requests_and_a_fetch_is_one(opened, name):
    async def scenario():
        async with opened() as store, opened() as reader:
            await mark(store, name)
            await put(store, name)
            before = sum(store.requests.values())
            await put(store, name, "other")
            assert sum(store.requests.values()) == before + 2
            await keys_of(reader, f"{name}stream")
            await reader.get(f"{name}other")
            assert dict(reader.requests) == {"ListObjectsV2": 1, "GetObject": 1}

    asyncio.run(scenario())


def test_a_bucket_that_stays_busy_is_given_up(moto, opened, name):
    async def scenario():
        async with opened(time_limit_s=1) as store:
            await mark(store, name)

            def busy(method, path):
                raise Fault(503, "SlowDown")

            moto.before = busy
            with pytest.raises(StoreUnreachableError, match="it answers SlowDown"):
                await put(store, name)

    asyncio.run(scenario())


def timed(seconds):
    return NoticeName.timed({"at": b"%d" % seconds}, 1e9 + seconds)[0]


def test_what_was_read_is_forgotten_but_for_the_last():
    """A step a second for a quarter of an hour, with a reader behind it."""
    known, after, kept = SeenStream("s", 0.0, kept=50), 0, 50
    for second in range(900):
        name = timed(second)
        assert known.is_new(name)
        known.add(name, NoticeName.fields(name))
        assert not known.is_new(name)
        if second % 10 == 9:
            found = known.behind(after, 1000)
            assert [int(notice.fields["at"]) for notice in found] == [
                *range(second - 9, second + 1)
            ]
            after = int(found[-1].id.partition("-")[0])
        assert len(known.behind(0, 1000)) <= 2 * kept + 20
        assert sys.getsizeof(known._names) < 50_000, "names are kept for ever"
    assert not known.is_new(timed(5)), "a folder is listed whole on S3 Express"
    assert not known.lacks(0), "nobody can tell what their writers have trimmed"


def test_a_reader_that_lags_misses_nothing():
    known = SeenStream("s", 0.0, kept=5)
    for number in range(1, 101):
        known.add(NoticeName.numbered(number), {"n": b"%d" % number})
    seen, after = [], 0
    while found := known.behind(after, 7):
        seen += [int(notice.fields["n"]) for notice in found]
        after = int(found[-1].id.partition("-")[0])
    assert seen == [*range(1, 101)]


def test_a_reader_that_comes_late_hears_from_the_bucket_what_the_client_has_forgotten(bucket):
    async def scenario():
        client = S3Client(S3Address.parse(bucket), time_limit_s=30)
        streams = S3Streams(ExpiringObjects(client, None), kept=2)
        try:
            for number in range(8):
                await streams.append("s", {"n": b"%d" % number}, 60)
            after = {"s": "0"}
            while found := await streams.read(after, wait_s=0, limit=3):
                after = {"s": found[-1].id}
            late = await streams.read({"s": "0"}, wait_s=0, limit=100)
            assert [notice.fields["n"] for notice in late] == [b"%d" % n for n in range(8)]
            await streams.append("s", {"n": b"8"}, 60)
            [found] = await streams.read(after, wait_s=5, limit=100)
            assert found.fields["n"] == b"8", "the first reader goes on where he was"
        finally:
            await client.close()

    asyncio.run(scenario())


def test_names_of_notices():
    name, body = NoticeName.timed({"a": b"\x00\xff" * 20}, 1e9)
    assert NoticeName.fields(name) == {"a": b"\x00\xff" * 20}
    assert body == b""
    name, body = NoticeName.timed({"a": bytes(2000)}, 1e9)
    assert NoticeName.fields(name) is None
    assert len(name) < 100 < len(body)
    assert NoticeName.numbered(7) == "n000000000007"
    assert NoticeName.number("n000000000007") == 7
    assert NoticeName.horizon("n000000000007") == "n000000000007"
    assert NoticeName.horizon(name) < name
    assert NoticeName.horizon("") == ""
