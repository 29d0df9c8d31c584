"""Deployment packages: unpacked once, within their limits."""

import base64
import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedded.conftest import zipped
from smlt.embedded.api_error import ApiError
from smlt.embedded.code_packages import unpack
from smlt.embedded.limits import Limits


def encoded(body):
    return base64.b64encode(body).decode()


def test_package_is_content_addressed_and_unpacked_once(tmp_path):
    body = encoded(zipped({"app.py": "x = 1", "data/table.csv": "1,2"}))
    with ThreadPoolExecutor(4) as pool:
        packages = list(pool.map(lambda _: unpack(body, tmp_path, Limits()), range(8)))
    assert len(set(packages)) == 1
    root = packages[0].root
    assert (root / "data" / "table.csv").read_text() == "1,2"
    assert not os.stat(root / "app.py").st_mode & 0o222
    assert os.listdir(tmp_path) == [root.name]
    assert base64.b64decode(packages[0].sha256).hex() == root.name


def test_package_too_large_unpacked_is_refused_and_leaves_nothing(tmp_path):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 2_000_000)
    limits = Limits(unzipped_bytes=1_999_999)
    with pytest.raises(ApiError, match="Unzipped size must be smaller than 1999999 bytes"):
        unpack(encoded(body.getvalue()), tmp_path, limits)
    assert os.listdir(tmp_path) == []


def test_package_too_large_zipped_is_refused(tmp_path):
    body = zipped({"app.py": "x" * 1000})
    with pytest.raises(ApiError, match="must be smaller than 1000 bytes") as caught:
        unpack(encoded(body), tmp_path, Limits(zipped_bytes=1000))
    assert caught.value.status == 413


WHOLE = zipped({"app.py": "x = 1" * 100})


@pytest.mark.parametrize("body", [WHOLE[:-30], b"", WHOLE[:60] + b"\xff" * 9 + WHOLE[69:]])
def test_damaged_zip_is_refused_and_leaves_nothing(tmp_path, body):
    with pytest.raises(ApiError, match="Could not unzip uploaded file"):
        unpack(encoded(body), tmp_path, Limits())
    assert os.listdir(tmp_path) == []
