"""The rule of conftest.py: in CI, isolation is skipped for a listed reason or not at all."""

import subprocess
import sys

import pytest

from embedded.conftest import allowed_reasons, unlisted
from embedded.test_cgroups import SKIPS


def test_only_listed_reasons_are_forgiven():
    skips = [("test_a", "no such host"), ("test_b", "a listed reason")]
    assert unlisted(skips, {"a listed reason"}) == [("test_a", "no such host")]


def test_list_has_the_reasons_that_tests_give():
    assert set(SKIPS.values()) <= allowed_reasons()


@pytest.mark.parametrize(("in_ci", "status"), [("true", 1), ("", 0)])
def test_unlisted_skip_fails_the_run_in_ci_only(tmp_path, in_ci, status):
    (tmp_path / "conftest.py").write_text(
        "from embedded.conftest import pytest_runtest_logreport, pytest_sessionfinish\n"
    )
    (tmp_path / "test_skip.py").write_text(
        "import pytest\n@pytest.mark.isolation\ndef test_it(): pytest.skip('the moon is full')\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    isolation: x\n")
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env={"PYTHONPATH": ":".join(paths), "CI": in_ci, "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout
    assert ("the moon is full" in done.stdout) == bool(in_ci)
