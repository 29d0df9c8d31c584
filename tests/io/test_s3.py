"""S3 as the object store: two servers, faults at every request, large objects, and what is said."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading

import pytest
from object_store_contract import ObjectStoreContract, keys, run
from s3_servers import CutError, Fault

from smlt.errors import (
    ConfigError,
    NotFoundError,
    PreconditionError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from smlt.io import s3, s3_client, s3_upload
from smlt.io.s3 import S3ObjectStore
from smlt.io.s3_address import S3Address
from smlt.io.stores import open_object_store

_numbers = itertools.count()

pytestmark = pytest.mark.usefixtures("credentials")


def connect(url: str, time_limit_s: float = 30.0) -> S3ObjectStore:
    return S3ObjectStore(S3Address.parse(url), time_limit_s=time_limit_s)


@pytest.fixture
def bucket(moto):
    """The URL of an empty bucket; the server behaves again afterwards."""
    yield moto.bucket(f"bucket-{next(_numbers)}")
    moto.heal()


class TestS3ObjectStoreOnMoto(ObjectStoreContract):
    @pytest.fixture
    def store(self, bucket):
        return connect(bucket.replace("?", "/a prefix/b?"))

    @pytest.fixture
    def twin(self, store):
        return connect(store.url)


@pytest.mark.slow
class TestS3ObjectStoreOnLocalbucket(ObjectStoreContract):
    @pytest.fixture
    def store(self, localbucket):
        return connect(localbucket.bucket(f"other-{next(_numbers)}"))

    @pytest.fixture
    def twin(self, store):
        return connect(store.url)

    test_if_match_has_one_winner = None  # it ignores If-Match


def each_request(server, fault, *, after=False, times=1):
    """Let the first requests of each kind fail; return the kinds that have."""
    failed = {}

    def fail(method, path):
        if failed.setdefault(method, 0) < times:
            failed[method] += 1
            raise fault

    setattr(server, "after" if after else "before", fail)
    return failed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(503, "SlowDown"),
        CutError(),
        pytest.param(Fault(500, "InternalError"), marks=pytest.mark.slow),
        pytest.param(Fault(409, "ConditionalRequestConflict"), marks=pytest.mark.slow),
        pytest.param(Fault(400, "ThrottlingException"), marks=pytest.mark.slow),
    ],
    ids=lambda fault: getattr(fault, "code", "cut"),
)
def test_a_passing_fault_of_any_request_is_overcome(moto, bucket, fault, after):
    store = connect(bucket)

    async def scenario():
        failed = each_request(moto, fault, after=after)
        etag = await store.put("state", b"first", if_absent=True)
        assert await store.get("state") == (b"first", etag)
        failed.clear()
        etag = await store.put("state", b"second", if_match=etag)
        assert await store.get("state") == (b"second", etag)
        failed.clear()
        assert (await store.head("state")).size == 6
        assert store.read_range("state", 1, 3) == b"eco"
        failed.clear()
        assert await keys(store, "") == ["state"]
        await store.delete("state")
        assert await store.head("state") is None
        assert failed.keys() == {"HEAD", "GET", "DELETE"}

    run(scenario, store)


def test_a_writer_that_lost_is_not_taken_for_the_winner(moto, bucket):
    store, twin = connect(bucket), connect(bucket)

    async def scenario():
        etag = await twin.put("state", b"winner", if_absent=True)
        each_request(moto, CutError(), after=True)
        with pytest.raises(PreconditionError):
            await store.put("state", b"winner", if_absent=True)
        moto.heal()
        assert await store.get("state") == (b"winner", etag)

    run(scenario, store, twin)


def test_a_service_that_stays_busy_is_given_up_in_time(moto, bucket):
    store = connect(bucket, time_limit_s=3.0)

    async def scenario():
        each_request(moto, Fault(503, "SlowDown"), times=1000)
        with pytest.raises(StoreUnreachableError, match=r"within 3 s: it answers SlowDown"):
            await store.put("k", b"x")
        assert store.requests["PutObject"] >= 3

    run(scenario, store)


def test_an_attempt_that_stands_still_leaves_time_for_the_next(monkeypatch):
    monkeypatch.setattr(s3_client, "_ATTEMPT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = connect(f"s3://bucket?endpoint=http://127.0.0.1:{server.getsockname()[1]}")

        def serve():
            silent, _ = server.accept()
            answering, _ = server.accept()
            with silent, answering:
                answering.recv(1 << 16)
                answering.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n')

        async def scenario():
            serving = asyncio.create_task(asyncio.to_thread(serve))
            assert await store.put("k", b"x") == '"e"'
            await serving

        run(scenario, store)


def test_requests_are_counted(bucket):
    store = connect(bucket)

    async def scenario():
        await store.put("k", b"x")
        await store.get("k")
        store.read_range("k", 0, 1)
        await keys(store, "")
        await store.head("k")
        await store.delete("k")
        assert dict(store.requests) == {
            "PutObject": 1,
            "GetObject": 2,
            "ListObjectsV2": 1,
            "HeadObject": 1,
            "DeleteObject": 1,
        }

    run(scenario, store)


class TestLargeObjects:
    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        # Moto and S3 take no part below 5 MB but the last one.
        monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
        monkeypatch.setattr(s3, "WHOLE_BYTES", 6 << 20)

    def test_they_go_up_in_parts(self, bucket, tmp_path):
        store = connect(bucket)
        pieces = [bytes([i]) * (1_000_003 + i) for i in range(17)]
        whole = b"".join(pieces)
        (tmp_path / "file").write_bytes(whole)

        async def scenario():
            etag = await store.put("pieces", pieces, if_absent=True)
            assert await store.get("pieces") == (whole, etag)
            await store.put_file("file", tmp_path / "file")
            assert (await store.get("file"))[0] == whole
            assert store.requests["UploadPart"] == 8
            assert await store.get_range("file", 5_000_000, 2_000_000) == whole[5_000_000:7_000_000]

        run(scenario, store)

    def test_an_upload_of_a_file_that_was_cut_goes_on_where_it_was(self, moto, bucket, tmp_path):
        store = connect(bucket, time_limit_s=3.0)
        size = (4 * 5 << 20) + 12_345
        whole = random.Random(3).randbytes(size)
        (tmp_path / "file").write_bytes(whole)
        sent, moved = [], []

        def fail(method, path):
            if method == "PUT":
                sent.append(path)
                if len(sent) > 2:
                    raise Fault(503, "SlowDown")

        async def cut():
            moto.before = fail
            with pytest.raises(StoreUnreachableError):
                await store.put_file("packages/torch", tmp_path / "file", moved.append)
            moto.heal()

        run(cut, store)
        assert sum(moved) == 2 * 5 << 20
        again = connect(bucket)
        moved.clear()

        async def go_on():
            await again.put_file("packages/torch", tmp_path / "file", moved.append)
            assert (await again.get("packages/torch"))[0] == whole
            assert await again.give_up_uploads() == 0

        run(go_on, again)
        assert again.requests["UploadPart"] == 3
        assert sum(moved) == size

    def test_parts_of_another_content_are_sent_again(self, moto, bucket, tmp_path):
        store = connect(bucket)
        s3, name = moto.client(), bucket.split("/")[2].partition("?")[0]
        begun = s3.create_multipart_upload(Bucket=name, Key="k")
        s3.upload_part(
            Bucket=name, Key="k", UploadId=begun["UploadId"], PartNumber=1, Body=bytes(5 << 20)
        )
        whole = random.Random(4).randbytes(12 << 20)
        (tmp_path / "file").write_bytes(whole)

        async def scenario():
            await store.put_file("k", tmp_path / "file")
            assert (await store.get("k"))[0] == whole
            assert store.requests["UploadPart"] == 3

        run(scenario, store)

    def test_what_was_left_of_uploads_can_be_freed(self, moto, bucket):
        store = connect(bucket.replace("?", "/mine?"))
        s3, name = moto.client(), bucket.split("/")[2].partition("?")[0]
        for key in ("mine/a", "mine/b", "other/c"):
            s3.create_multipart_upload(Bucket=name, Key=key)

        async def scenario():
            assert await store.give_up_uploads() == 2

        run(scenario, store)
        left = s3.list_multipart_uploads(Bucket=name)["Uploads"]
        assert [upload["Key"] for upload in left] == ["other/c"]

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    def test_faults_in_the_middle_are_overcome(self, moto, bucket, after):
        store = connect(bucket)
        whole = bytes(range(256)) * 40_000

        async def scenario():
            each_request(moto, CutError(), after=after, times=2)
            etag = await store.put("k", whole)
            assert await store.get("k") == (whole, etag)

        run(scenario, store)

    def test_an_upload_that_fails_leaves_no_parts(self, moto, bucket):
        store = connect(bucket)

        def refuse(method, path):
            if method == "PUT":
                raise Fault(403, "AccessDenied")

        async def scenario():
            moto.before = refuse
            with pytest.raises(ConfigError, match="access is denied"):
                await store.put("k", bytes(12 << 20))
            moto.heal()

        run(scenario, store)
        assert "Uploads" not in moto.client().list_multipart_uploads(
            Bucket=store.url[5:].partition("?")[0]
        )


class TestWhatIsSaid:
    def failure(self, store, call=None):
        async def scenario():
            with pytest.raises((StoreError, ConfigError)) as error:
                await (call or store.put("k", b"x"))
            found.append(error.value)

        found = []
        run(scenario, store)
        [error] = found
        assert "\n" not in str(error)
        return error

    def test_there_are_no_credentials(self, bucket, monkeypatch):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        error = self.failure(connect(bucket))
        assert isinstance(error, ConfigError)
        assert "there are no AWS credentials" in str(error)

    def test_the_profile_is_unknown(self, bucket, monkeypatch):
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        assert "there are no AWS credentials" in str(self.failure(connect(bucket)))

    def test_there_is_no_such_bucket(self, moto):
        error = self.failure(connect(f"s3://none-such?endpoint={moto.endpoint}"))
        assert isinstance(error, ConfigError)
        assert str(error) == (
            f"there is no bucket none-such at {moto.endpoint}: create it, or correct its name"
        )

    @pytest.mark.parametrize(
        ("fault", "kind", "words"),
        [
            (Fault(403, "AccessDenied"), ConfigError, "access is denied"),
            (Fault(403, "InvalidAccessKeyId"), ConfigError, "does not accept the credentials"),
            (Fault(400, "ExpiredToken"), ConfigError, "renew or correct them"),
            (Fault(507, "QuotaExceeded"), StoreFullError, "there is no room"),
            (Fault(400, "MalformedXML"), StoreError, "it was refused with MalformedXML: as told"),
        ],
        ids=lambda value: getattr(value, "code", None),
    )
    def test_the_service_refuses(self, moto, bucket, fault, kind, words):
        each_request(moto, fault, times=1000)
        error = self.failure(connect(bucket))
        assert type(error) is kind
        assert words in str(error)

    def test_head_without_the_right_to_list_is_no_missing_object(self, moto, bucket):
        each_request(moto, Fault(403, "AccessDenied"), times=1000)
        store = connect(bucket)
        assert "access is denied" in str(self.failure(store, store.head("k")))

    def test_nobody_listens(self):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        error = self.failure(connect(f"s3://bucket?endpoint={endpoint}", time_limit_s=3.0))
        assert isinstance(error, StoreUnreachableError)
        assert f"{endpoint} does not do it within 3 s: no connection can be made" in str(error)

    def test_a_service_that_is_silent_is_given_up(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
            error = self.failure(connect(f"s3://bucket?endpoint={endpoint}", time_limit_s=1.0))
        assert isinstance(error, StoreUnreachableError)
        assert "it does not answer" in str(error)


class TestAddress:
    def test_it_is_taken_apart(self):
        address = S3Address.parse("s3://b.u-cket/a/b/?endpoint=http://h:9000&region=eu-west-1")
        assert (address.bucket, address.prefix) == ("b.u-cket", "a/b")
        assert (address.endpoint, address.region) == ("http://h:9000", "eu-west-1")
        assert S3Address.parse(address.url) == address
        assert address.name("k") == "a/b/k"
        assert address.key("a/b/k/l") == "k/l"
        assert address.shown == "s3://b.u-cket/a/b"

    def test_an_endpoint_comes_from_awss_own_variable(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://there:9000")
        assert open_object_store("s3://bucket").url == "s3://bucket?endpoint=http://there:9000"
        given = "s3://bucket?endpoint=http://here:1"
        assert open_object_store(given).url == given

    @pytest.mark.parametrize(
        "url",
        [
            "s3://",
            "s3:///a",
            "s3://B",
            "s3://bucket/../x",
            "s3://bucket/a//b",
            "s3://bucket?x=1",
            "s3://bucket?endpoint=host:9000",
            "http://bucket",
            "s3://bucket?endpoint",
        ],
    )
    def test_a_wrong_one_is_refused(self, url):
        with pytest.raises(ConfigError):
            S3Address.parse(url)


def test_a_directory_bucket_is_listed_by_directories(moto):
    """What S3 Express does otherwise: no prefix but whole directories, and no order."""
    store = connect(moto.bucket("express--use1-az4--x-s3"))

    async def scenario():
        for name in ("a/2", "a/10", "a/1", "b"):
            await store.put(name, b"")
        moto.requests.clear()
        assert await keys(store, "a/1") == ["a/1", "a/10"]
        assert await keys(store, "") == ["a/1", "a/10", "a/2", "b"]

    run(scenario, store)


def test_read_range_works_in_any_thread(bucket):
    store = connect(bucket)
    found = []

    async def scenario():
        await store.put("k", b"0123456789")
        threads = [
            threading.Thread(target=lambda i=i: found.append(store.read_range("k", i, 2)))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)

    run(scenario, store)
    assert sorted(found) == [b"0123456789"[i : i + 2] for i in range(8)]


def test_a_missing_file_and_a_closed_store(bucket, tmp_path):
    store = connect(bucket)

    async def scenario():
        with pytest.raises(NotFoundError, match="no such file"):
            await store.put_file("k", tmp_path / "none")
        await store.put("k", b"x")
        await store.close()
        await store.close()

    run(scenario, store)
