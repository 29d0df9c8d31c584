"""The directory as an object store: between processes, and where the disk refuses."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys

import pytest
from object_store_contract import ObjectStoreContract, keys

from smlt.errors import StoreError, StoreFullError, StoreUnreachableError
from smlt.io.directory import OWN_DIRECTORY, DirectoryStore
from smlt.io.file_lock import file_lock


class TestDirectoryStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return DirectoryStore(tmp_path / "store with space")

    @pytest.fixture
    def twin(self, tmp_path):
        return DirectoryStore(tmp_path / "store with space")


@pytest.fixture
def store(tmp_path):
    return DirectoryStore(tmp_path / "store")


INCREMENTS = """
import asyncio, sys
from smlt.errors import PreconditionError
from smlt.io.directory import DirectoryStore

async def main():
    store = DirectoryStore(sys.argv[1])
    try:
        await store.put("runs/first", sys.argv[2].encode(), if_absent=True)
        print("first")
    except PreconditionError:
        pass
    done = 0
    while done < 20:
        value, etag = await store.get("counter")
        try:
            await store.put("counter", b"%d" % (int(value) + 1), if_match=etag)
            done += 1
        except PreconditionError:
            pass
        await store.put(f"churn/{sys.argv[2]}/x", b"x")
        await store.delete(f"churn/{sys.argv[2]}/x")

asyncio.run(main())
"""


def test_conditional_writes_are_safe_between_processes(store):
    asyncio.run(store.put("counter", b"0"))
    command = [sys.executable, "-c", INCREMENTS, str(store.local_path("counter").parent)]
    processes = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(6)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in outputs if error] == []
    assert sum(output == b"first\n" for output, _ in outputs) == 1
    assert asyncio.run(store.get("counter"))[0] == b"120"


KILLED = """
import os, signal, sys
from pathlib import Path
from smlt.io.directory import DirectoryStore

class Dying(DirectoryStore):
    def _replace(self, temporary, path, if_match=""):
        os.kill(os.getpid(), signal.SIGKILL)

import asyncio
asyncio.run(Dying(sys.argv[1]).put("k", b"half" * 100000))
"""


def test_a_writer_that_is_killed_leaves_the_old_object(store, tmp_path):
    asyncio.run(store.put("k", b"old"))
    root = tmp_path / "store"
    subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False, timeout=60)
    own = root / OWN_DIRECTORY
    [left] = own.glob("tmp-*")
    assert asyncio.run(store.get("k"))[0] == b"old"
    os.utime(left, (0, 0))

    async def scenario():
        assert await keys(store, "") == ["k"]
        await DirectoryStore(root).put("k", b"new")  # a new process sweeps what is stale
        assert list(own.glob("tmp-*")) == []

    asyncio.run(scenario())


def test_an_object_can_be_mapped_and_read_by_others(store, tmp_path):
    asyncio.run(store.put("a/b", b"x"))
    path = store.local_path("a/b")
    assert path == tmp_path / "store" / "a" / "b"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_that_was_torn_by_a_power_failure_is_put_again(store, tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"content")

    async def scenario():
        await store.put("data/x", b"con")
        await store.put_file("data/x", source)
        assert (await store.get("data/x"))[0] == b"content"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (errno.ENOSPC, StoreFullError, "no space left"),
        (errno.EDQUOT, StoreFullError, "quota"),
        (errno.EROFS, StoreError, "read-only"),
        (errno.EACCES, StoreError, "permission"),
        (errno.EIO, StoreError, "input/output error"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(store, monkeypatch, code, error, words):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    asyncio.run(store.put("k", b"old"))
    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(error, match=words) as caught:
        asyncio.run(store.put("k", b"new"))
    assert "k in" in str(caught.value)
    monkeypatch.undo()
    assert asyncio.run(store.get("k"))[0] == b"old"
    assert list((store.local_path("k").parent / OWN_DIRECTORY).glob("tmp-*")) == []


FILE_SIZE_LIMIT = """
import asyncio, resource, sys
from smlt.errors import StoreFullError
from smlt.io.directory import DirectoryStore

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    asyncio.run(DirectoryStore(sys.argv[1]).put("k", b"x" * 2000))
except StoreFullError as error:
    print(error)
"""


def test_a_real_limit_is_reported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path)], capture_output=True, timeout=60
    )
    assert b"cannot write k in" in done.stdout


def test_a_root_that_is_a_file_is_said_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write k in"):
        asyncio.run(DirectoryStore(tmp_path / "file").put("k", b"x"))


def test_an_object_below_an_object_is_refused(store):
    async def scenario():
        await store.put("a", b"x")
        with pytest.raises(StoreError, match="a/b"):
            await store.put("a/b", b"x")
        await store.put("c/d", b"x")
        with pytest.raises(StoreError, match="cannot write c in"):
            await store.put("c", b"x")

    asyncio.run(scenario())


def test_the_store_hides_its_own_files(store):
    async def scenario():
        await store.put("k", b"x")
        assert await keys(store, "") == ["k"]
        assert await keys(store, ".smlt") == []
        with pytest.raises(StoreError, match="the store's own"):
            await store.get(f"{OWN_DIRECTORY}/lock")

    asyncio.run(scenario())


def test_a_lock_that_is_held_too_long_is_named(tmp_path):
    store = DirectoryStore(tmp_path, lock_wait_s=0.05)

    async def scenario():
        await store.put("k", b"x")
        lock = tmp_path / OWN_DIRECTORY / "lock"
        with (
            file_lock(lock, wait_s=1),
            pytest.raises(StoreUnreachableError, match=r"held the lock .* for 0\.05 s"),
        ):
            await store.put("k", b"y")
        await store.put("k", b"z")

    asyncio.run(scenario())
