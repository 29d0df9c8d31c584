"""A run directory without room: one sentence, and what was saved is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jobs.harness import SMALL, until

OPTIONS = (SMALL, "--workers", "2", "--steps", "20")


@pytest.fixture
def small_disk(place):
    """The run directory is a file system of 32 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place.run.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place.run)]
    done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place.run)], check=True)


def fill(folder, leave=0):
    """Write until the disk is full, but for some bytes."""
    descriptor = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY)
    try:
        while shutil.disk_usage(folder).free > leave:
            os.write(descriptor, bytes(4096))
    finally:
        os.close(descriptor)


@pytest.mark.isolation
@pytest.mark.parametrize("leave", [0, 400_000])
def test_no_room_at_the_start(small_disk, leave):
    fill(small_disk.run, leave)
    ended = small_disk.train(*OPTIONS).check(1)
    assert "run" in ended.sentence
    assert "no space left" in ended.sentence.lower()


@pytest.mark.isolation
def test_no_room_in_mid_run(small_disk):
    gate = small_disk.gate(8)
    job = small_disk.start(*OPTIONS, "--json", *gate.params)
    gate.until_there(job, 2)
    until(lambda: len(job.pids()) == 2, "the processes of the ranks")
    fill(small_disk.run)
    job.kill_rank(1)
    gate.open()
    ended = job.end(90).check(1)
    assert "no space left" in ended.sentence.lower()
    assert f"`smlt resume {job.folder.name}` goes on from the newest checkpoint" in ended.sentence
    _, _, named = ended.sentence.rpartition("(")
    assert (Path(named.rstrip(")")) / "manifest.json").exists()
    assert ended.summary["state"] == "failed"
