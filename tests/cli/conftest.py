"""The command line as a user meets it: arguments in, two streams and an exit code out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAM = Path(__file__).with_name("fake_session.py")
ROOT = PROGRAM.parents[2]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """An empty current folder, and no variable of ours."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SMLT_")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def smlt(in_folder, capsys):
    """Run the command in this process, with a session that only plays a job."""
    from fake_session import FakeSession

    from smlt.cli import main

    def run(*arguments):
        code = main(list(map(str, arguments)), open_session=FakeSession)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def start(in_folder):
    """Start the command as a process of its own; what is left of it is killed at the end."""
    started = []

    def begin(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-u", str(PROGRAM), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=in_folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=10)
