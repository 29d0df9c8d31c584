"""A job and more than one client: attach, stop, resume, list and clean."""

from __future__ import annotations

import json
import os
import signal

import pytest

from jobs.harness import SMALL, until

OPTIONS = ("--workers", "2", "--steps", "20", "--json", "--quiet")


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """What an undisturbed run of two workers gives."""
    from jobs.harness import Place

    place = Place(tmp_path_factory.mktemp("calm"))
    return place.train(SMALL, *OPTIONS).check(0).summary["weights_digest"]


def at_step_8(place):
    gate = place.gate(8)
    job = place.start(SMALL, *OPTIONS, *gate.params)
    gate.until_there(job, 2)
    return job, gate


def state_of(place, job):
    path = place.run / "objects" / "jobs" / job.folder.name / "job.json"
    return json.loads(path.read_text())


def test_job_of_a_killed_client_is_attached_to_and_goes_on(place, digest):
    job, gate = at_step_8(place)
    cloud = job.cloud()["pid"]
    job.signal(signal.SIGKILL)
    job.process.wait()
    attached = place.start(job.folder.name, "--json", command="attach")
    with job.store() as store:
        until(lambda: list(store.scan_iter("*:1}:abort")), "the end of the first generation")
    assert state_of(place, job)["token"] == 2
    gate.open()
    ended = attached.end().check(0)
    assert ended.summary["weights_digest"] == digest
    assert "step 20/20" in ended.err
    kinds = [event["generation"] for event in job.events("generation")]
    assert kinds == [1, 2]
    # The survivors' newest state is what it went on from: no step was lost but the unfinished.
    assert job.events("generation")[1]["parent"] == {"generation": 1, "step": 8}
    until(lambda: not os.path.exists(f"/proc/{cloud}"), "the end of the first client's cloud")


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [False, True], ids=["wakes up", "is told to stop at once"])
def test_client_that_wakes_up_after_another_has_taken_over_changes_nothing(place, digest, hostile):
    job, gate = at_step_8(place)
    job.signal(signal.SIGSTOP)
    attached = place.start(job.folder.name, "--json", "--quiet", command="attach")
    until(lambda: state_of(place, job)["token"] == 2, "the other client")
    if hostile:
        for _ in range(2):
            job.signal(signal.SIGINT)
    job.signal(signal.SIGCONT)
    told = job.end(30)
    assert told.code in ((1, 130) if hostile else (1,)), told
    if told.code == 1:
        assert f"process {attached.process.pid} on {os.uname().nodename}" in told.sentence
    gate.open()
    ended = attached.end().check(0)
    assert ended.summary["weights_digest"] == digest
    assert ended.summary["generations"] == 2


@pytest.mark.slow
def test_second_client_is_told_who_leads(place, digest):
    job, gate = at_step_8(place)
    refused = place.smlt("attach", job.folder.name).check(1)
    assert f"process {job.process.pid} on {os.uname().nodename}" in refused.sentence
    assert "since 20" in refused.sentence
    refused = place.smlt("resume", job.folder.name).check(1)
    assert f"process {job.process.pid}" in refused.sentence
    kept = place.smlt("clean", job.folder.name).check(2)
    assert "is running: end it first" in kept.sentence
    gate.open()
    assert job.end().check(0).summary["weights_digest"] == digest


def test_stopped_job_is_resumed_by_another_number_of_workers(place):
    job, gate = at_step_8(place)
    stopping = place.start(job.folder.name, "--json", command="stop")
    job.until(lambda: job.status()["state"] == "stopping", "the news of the stop")
    gate.open()
    told = stopping.end().check(0).summary
    assert told["state"] == "stopped"
    assert job.end().check(130).summary["steps"] < 20
    resumed = place.smlt("resume", job.folder.name, "--workers", "1", "--json").check(0)
    assert (resumed.summary["steps"], resumed.summary["workers"]) == (20, 1)
    again = place.smlt("resume", job.folder.name).check(2)
    assert "--epochs or --steps" in again.sentence
    again = place.smlt("resume", job.folder.name, "--steps", "20").check(2)
    assert "is complete at step 20: --steps 20 is no further" in again.sentence
    ended = place.smlt("attach", job.folder.name).check(2)
    assert "has ended (completed)" in ended.sentence


@pytest.mark.slow
def test_stop_now_does_not_wait_for_the_step(place):
    # The gate stays shut: no worker ever ends its step.
    job, _ = at_step_8(place)
    workers = set(job.pids().values())
    stopped = place.smlt("stop", job.folder.name, "--now", "--json", limit_s=30).check(0)
    assert stopped.summary["state"] == "stopped"
    assert stopped.seconds < 15  # ten, and the start of a command on a busy machine
    job.end(30).check(130)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]


@pytest.mark.slow
def test_complete_job_is_trained_further_as_if_it_had_never_ended(place, digest):
    first = place.train(SMALL, "--workers", "2", "--steps", "7", "--json", "--quiet").check(0)
    job_id = first.summary["job_id"]
    # Seven steps end within an epoch of four, with an evaluation that the longer job has not.
    longer = place.smlt("resume", job_id, "--steps", "20", "--json", "--quiet").check(0)
    assert longer.summary["steps"] == 20
    assert longer.summary["weights_digest"] == digest


@pytest.mark.slow
def test_jobs_are_listed_and_cleaned(place):
    ids = [
        place.train(SMALL, "--workers", "1", "--steps", "2", "--json").check(0).summary["job_id"]
        for _ in range(2)
    ]
    listed = json.loads(place.smlt("jobs", "--json").check(0).out)
    assert {job["job_id"]: job["state"] for job in listed} == dict.fromkeys(ids, "completed")
    assert all(job["step"] == 2 and job["bytes"] > 0 for job in listed)
    assert ids[0] in place.smlt("jobs").check(0).out
    assert json.loads(place.smlt("clean", "--older-than", "1h", "--json").check(0).out) == {
        "removed": [],
        "chosen": [],
        "bytes": 0,
    }
    assert "; kept 1" in place.smlt("clean", ids[0], "--dry-run").check(0).out
    assert (place.run / "jobs" / ids[0]).exists()
    place.smlt("clean", ids[0]).check(0)
    left = [path for path in place.run.rglob("*") if ids[0] in str(path)]
    assert left == []
    [kept] = json.loads(place.smlt("jobs", "--json").check(0).out)
    assert kept["job_id"] == ids[1]
