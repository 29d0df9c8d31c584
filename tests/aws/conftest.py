"""One account for the tests of AWS, and a command line that knows nothing but its endpoint."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

import smlt
from smlt.aws.wheels import WORKER_NEEDS
from tests.aws.account import aws_account
from tests.jobs.harness import CODE, Ended, until

LAUNCH = Path(__file__).with_name("launch.py")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory):
    """Wheels under the names of those that smlt's worker needs, for a pip without a network.

    They are empty: functions here see the packages of the tests' own Python.
    """
    folder = tmp_path_factory.mktemp("wheels")
    for name in WORKER_NEEDS:
        write_wheel(folder, name, importlib.metadata.version(name))
    return folder


def write_wheel(folder, name, version, files=None, requires=()):
    """Write a wheel that any Python takes; return its path."""
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    files = {
        f"{plain}_marker.py": f"version = {version!r}\n",
        **(files or {}),
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in files))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """What need not be made again for every test: wheels, compiled modules."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def account():
    # Short: a function's folder is below it. Below /tmp: functions must see it in theirs.
    folder = Path(tempfile.mkdtemp(prefix="aws-"))
    with aws_account(folder, visible=[CODE]) as account:
        yield account
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bucket(account):
    """The URL of an empty bucket; the account behaves again afterwards."""
    name = f"training-{next(_numbers)}"
    account.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/here"
    account.heal()


def _heed_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Shell:
    """Runs ``smlt`` in a folder, against the account."""

    def __init__(self, folder, account, wheelhouse, cache):
        self.folder = folder
        self.variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(CODE),
            "COLUMNS": "200",
            "XDG_CACHE_HOME": str(cache),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheelhouse),
            "SMLT_AWS_PYTHON": f"3.{sys.version_info.minor}",
            "SMLT_AWS_CORE": str(Path(smlt.__file__).parent / "_core"),
            **account.variables,
        }

    def start(self, *arguments, **variables):
        return subprocess.Popen(
            [sys.executable, str(LAUNCH), *map(str, arguments)],
            cwd=self.folder,
            env=self.variables | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has them ignore it.
            preexec_fn=_heed_ctrl_c,
        )

    def smlt(self, *arguments, limit_s=90.0, **variables):
        """Run a command to its end."""
        process = self.start(*arguments, **variables)
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"not ended within {limit_s:g} s:\n{out}\n{err}") from None
        return Ended(process.returncode, out, err, 0.0)


@pytest.fixture
def shell(tmp_path, account, wheelhouse, cache):
    return Shell(tmp_path, account, wheelhouse, cache)


__all__ = ["until", "write_wheel"]
