"""Packages from the object store: what arrives is importable, and nothing that was changed is."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import sys

import numpy as np
import pytest

from smlt.aws.bundles import bundle_list, make_bundle
from smlt.aws.wheels import Wheel
from smlt.errors import StoreError
from smlt.io.directory import DirectoryStore
from smlt.io.keys import bundle_key, bundle_list_key
from smlt.worker.packages import ensure_packages
from tests.aws.conftest import write_wheel

NOISE = np.random.default_rng(7).integers(0, 256, 10 << 20, dtype=np.uint8).tobytes()
"""More than one range, and nothing that compresses."""


@pytest.fixture
def deployed(tmp_path):
    """A store with two packages; the digest of their list, and the bundles."""
    store = DirectoryStore(tmp_path / "objects")
    wheels = [
        write_wheel(tmp_path, "bulky", "1.0", {"bulky/__init__.py": "", "bulky/data.bin": NOISE}),
        write_wheel(tmp_path, "plain", "2.0", {"plain.py": "words = 'a' * 3"}),
    ]
    bundles = [make_bundle(Wheel(path), tmp_path / "cache") for path in wheels]
    listed = bundle_list([bundle for bundle, _ in bundles])
    digest = hashlib.sha256(listed).hexdigest()
    for bundle, path in bundles:
        asyncio.run(store.put_file(bundle_key(bundle.sha256), path))
    asyncio.run(store.put(bundle_list_key(digest), listed))
    yield store, digest, [bundle for bundle, _ in bundles]
    sys.path[:] = [entry for entry in sys.path if "smlt-packages" not in entry]
    for name in ("bulky", "plain"):
        sys.modules.pop(name, None)


def test_packages_are_importable_and_whole(tmp_path, deployed, capsys):
    store, digest, bundles = deployed
    ensure_packages(store, digest, tmp_path)
    bulky = importlib.import_module("bulky")
    with open(f"{bulky.__path__[0]}/data.bin", "rb") as file:
        assert file.read() == NOISE
    assert importlib.import_module("plain").words == "aaa"
    assert bundles[0].unpacked >= len(NOISE)
    assert "smlt: packages of 10 MB fetched" in capsys.readouterr().out


def test_packages_are_fetched_once_for_an_environment(tmp_path, deployed):
    store, digest, bundles = deployed
    ensure_packages(store, digest, tmp_path)
    for bundle in bundles:
        asyncio.run(store.delete(bundle_key(bundle.sha256)))
    ensure_packages(store, digest, tmp_path)


@pytest.mark.parametrize("change", ["flipped", "shorter", "other"])
def test_a_package_that_is_not_the_one_deployed_is_refused_and_not_importable(
    tmp_path, deployed, change
):
    store, digest, bundles = deployed
    key = bundle_key(bundles[0].sha256)
    data = bytearray(asyncio.run(store.get(key))[0])
    if change == "flipped":
        data[len(data) // 2] ^= 1
    elif change == "shorter":
        del data[-100:]
    else:
        data = asyncio.run(store.get(bundle_key(bundles[1].sha256)))[0]
    asyncio.run(store.put(key, bytes(data)))
    with pytest.raises(StoreError, match="bulky in the object store is not the one"):
        ensure_packages(store, digest, tmp_path)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bulky")


def test_a_list_that_is_not_the_one_deployed_is_refused(tmp_path, deployed):
    store, digest, _ = deployed
    asyncio.run(store.put(f"bundles/{digest}.json", b"[]"))
    with pytest.raises(StoreError, match="the list of packages is not the one"):
        ensure_packages(store, digest, tmp_path)
