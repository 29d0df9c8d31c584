"""What was uploaded once is not uploaded again."""

from __future__ import annotations

import importlib.metadata
import shutil

import pytest

from smlt.aws.wheels import WORKER_NEEDS
from tests.aws.conftest import Shell, write_wheel
from tests.jobs.harness import TASKS

LARGE = 260 << 20
"""Bytes: more than fits a function."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def written(account):
    """What has been written into the bucket since the last time."""

    def written():
        new = account.puts[len(seen) :]
        seen.extend(new)
        return [path.partition("/here/")[2].partition("/")[0] for path in new]

    seen = list(account.puts)
    return written


def test_only_what_has_changed_is_uploaded(tmp_path, account, bucket, cache, written):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in WORKER_NEEDS:
        write_wheel(wheels, name, importlib.metadata.version(name))
    for name in ("huge", "large"):
        files = {f"{name}/__init__.py": "", f"{name}/data.bin": name[:1].encode() * LARGE}
        write_wheel(wheels, name, "1.0", files)
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(TASKS / "small.py", job)
    (job / "requirements.txt").write_text("huge\nlarge\n")
    shell = Shell(tmp_path, account, wheels, cache)
    deploy = ("deploy", job / "small.py:Regression", "--objects", bucket, "--parameters", bucket)

    first = shell.smlt(*deploy, limit_s=200).check(0)
    assert sorted(set(written())) == ["bundles", "code", "layers"]
    assert "uploading huge 1.0" in first.err
    again = shell.smlt(*deploy).check(0)
    assert written() == []
    assert "uploading" not in again.err

    (job / "small.py").write_text((job / "small.py").read_text() + "\nX = 1\n")
    shell.smlt(*deploy).check(0)
    assert written() == ["code"]

    # Another version of one package: its own bundle and the list, and no other package's.
    write_wheel(wheels, "huge", "1.1", {"huge/__init__.py": "", "huge/data.bin": b"u" * LARGE})
    (job / "requirements.txt").write_text("huge==1.1\nlarge\n")
    changed = shell.smlt(*deploy, limit_s=200).check(0)
    assert set(written()) == {"bundles", "code"}  # which holds the file of requirements
    assert "uploading huge 1.1" in changed.err
    assert "large" not in changed.err
    shell.smlt("destroy", "--objects", bucket).check(0)
