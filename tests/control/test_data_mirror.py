"""Data in a bucket: a folder that follows what is there."""

import asyncio

import pytest

from smlt.control.data_mirror import DataMirror
from smlt.errors import ConfigError
from tests.io.s3_servers import CREDENTIALS, S3Server


@pytest.fixture
def server(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with S3Server() as server:
        yield server


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_a_folder_follows_what_is_in_the_bucket(server, tmp_path):
    server.bucket("mirrored")
    client = server.client()

    def put(**objects):
        for name, data in objects.items():
            client.put_object(Bucket="mirrored", Key=f"in/{name}/data.bin", Body=data)

    mirror = DataMirror(f"s3://mirrored/in?endpoint={server.endpoint}", tmp_path)
    with pytest.raises(ConfigError, match="there are no data under s3://mirrored/in"):
        asyncio.run(mirror.refresh())
    put(a=b"one", b=b"two")
    client.put_object(Bucket="mirrored", Key="in/empty/", Body=b"")  # what consoles call a folder
    folder = asyncio.run(mirror.refresh())
    assert files(folder) == {"a/data.bin": b"one", "b/data.bin": b"two"}
    put(a=b"ONE")  # as long as before
    client.delete_object(Bucket="mirrored", Key="in/b/data.bin")
    server.requests.clear()
    asyncio.run(mirror.refresh())
    assert files(folder) == {"a/data.bin": b"ONE"}
    # The next job, too, fetches only what has changed.
    server.requests.clear()
    again = DataMirror(mirror.url, tmp_path)
    assert asyncio.run(again.refresh()) == folder
    assert [path for _, path in server.requests if "data.bin" in path] == []


def test_a_name_that_leads_out_of_the_folder_is_refused(server, tmp_path):
    server.bucket("hostile")
    server.client().put_object(Bucket="hostile", Key="in/../../out.txt", Body=b"x")
    mirror = DataMirror(f"s3://hostile/in?endpoint={server.endpoint}", tmp_path)
    with pytest.raises(ConfigError):
        asyncio.run(mirror.refresh())
    assert not list(tmp_path.rglob("out.txt"))
