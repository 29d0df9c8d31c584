"""``smlt train --watch``: workers come with the data, and go with it."""

from __future__ import annotations

import runpy
import signal
import time

import boto3
import numpy as np
import pytest
import safetensors.numpy

from jobs.harness import CODE, SMALL
from smlt.config import TrainConfig
from smlt.errors import ConfigError
from tests.io.s3_servers import CREDENTIALS, S3Server

ONLINE = CODE / "examples" / "online_learning"
EPOCHS = 3
STEPS = EPOCHS * -(-(512 - 64) // 64)  # of a burst


@pytest.fixture
def arrive(place):
    write = runpy.run_path(str(ONLINE / "arrive.py"))["write"]
    return lambda burst: write(burst, place.path / "data")


def start(place, *more):
    return place.start(
        f"{ONLINE / 'train.py'}:Drifting", "--watch", "--data", str(place.path / "data"),
        "--epochs", str(EPOCHS), "--workers", "2", "--json", *more,
    )  # fmt: skip


def until_waiting(job, times):
    def waits():
        return len(job.events("waiting")) >= times and job.status()["state"] == "waiting"

    job.until(waits, f"waiting for burst {times + 1}")


def invocations(job):
    """Begun and ended, by the embedded Lambda's own log: (START lines, REPORT lines)."""
    logs = boto3.client(
        "logs", endpoint_url=job.cloud()["endpoint"], region_name="us-east-1",
        aws_access_key_id="local", aws_secret_access_key="local",
    )  # fmt: skip
    lines = [
        event["message"]
        for group in logs.describe_log_groups()["logGroups"]
        for page in logs.get_paginator("filter_log_events").paginate(
            logGroupName=group["logGroupName"]
        )
        for event in page["events"]
    ]
    return tuple(sum(line.startswith(word) for line in lines) for word in ("START", "REPORT"))


def in_one_process(arrive, bursts):
    """The same regression in float64, over the bursts in their order; the error on the last."""
    from smlt.worker.sample_order import SampleOrder

    w, velocity = np.zeros(16), np.zeros(16)
    for number, burst in enumerate(bursts):
        rows = np.load(arrive(burst))
        x, y = rows["x"][:-64].astype(np.float64), rows["y"][:-64].astype(np.float64)
        order = SampleOrder(len(x), 64, 16, seed=0)
        for epoch in range(EPOCHS * number, EPOCHS * (number + 1)):
            for index in range(order.steps_in(epoch)):
                batch = order.batch(epoch, index, range(16))
                error = x[batch] @ w - y[batch]
                velocity = 0.9 * velocity + error @ x[batch] / len(batch)
                w = w - 0.05 * velocity
    return w


@pytest.mark.slow
def test_no_function_runs_or_is_billed_between_bursts_and_nothing_is_forgotten(place, arrive):
    arrive(1)
    job = start(place)
    for number in (1, 2):
        until_waiting(job, number)
        begun, ended = invocations(job)
        assert begun == ended == 2 * number
        billed = job.status()["billed_gb_s"]
        assert job.status()["ranks"] == []
        time.sleep(3.0)  # time in which nothing is to happen
        assert job.status()["billed_gb_s"] == billed
        assert invocations(job) == (begun, ended)
        assert job.status()["step"] == STEPS * number
        if number == 1:
            arrive(2)
    job.signal(signal.SIGINT)
    ended = job.end().check(0)
    summary = ended.summary
    assert (summary["state"], summary["steps"], summary["generations"]) == (
        "completed",
        2 * STEPS,
        2,
    )
    learnt = safetensors.numpy.load_file(summary["model_path"])["w"]
    np.testing.assert_allclose(learnt, in_one_process(arrive, (1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_job_that_was_ended_while_it_waited_goes_on_with_what_came_since(place, arrive):
    arrive(1)
    job = start(place)
    until_waiting(job, 1)
    job.signal(signal.SIGINT)
    job_id = job.end().check(0).summary["job_id"]
    arrive(2)
    resumed = place.start(job_id, "--json", command="resume")
    resumed.until(lambda: len(job.events("waiting")) >= 2 and job.status()["step"] == 2 * STEPS,
                  "the second burst's end")  # fmt: skip
    resumed.signal(signal.SIGINT)
    assert resumed.end().check(0).summary["steps"] == 2 * STEPS


@pytest.mark.slow
def test_a_prefix_of_a_bucket_is_watched_as_a_folder_is(place, arrive):
    with S3Server() as server:
        server.bucket("bursts")

        def send(burst):
            path = arrive(burst)
            server.client().upload_file(str(path), "bursts", f"data/{path.name}")

        send(1)
        job = place.start(
            f"{ONLINE / 'train.py'}:Drifting", "--watch", "--data", "s3://bursts/data",
            "--objects", "s3://bursts/objects", "--s3-endpoint", server.endpoint,
            "--epochs", str(EPOCHS), "--workers", "2", "--json", **CREDENTIALS,
        )  # fmt: skip
        until_waiting(job, 1)
        assert job.status()["ranks"] == []
        assert job.status()["step"] == STEPS
        send(2)
        until_waiting(job, 2)
        job.signal(signal.SIGINT)
        job_id = job.end().check(0).summary["job_id"]
        send(3)
        resumed = place.start(job_id, "--json", command="resume", **CREDENTIALS)
        resumed.until(lambda: job.status()["step"] == 3 * STEPS, "the third burst's end")
        resumed.until(lambda: job.status()["state"] == "waiting", "more waiting")
        resumed.signal(signal.SIGINT)
        summary = resumed.end().check(0).summary
        assert (summary["state"], summary["steps"]) == ("completed", 3 * STEPS)
    learnt = safetensors.numpy.load_file(summary["model_path"])["w"]
    np.testing.assert_allclose(learnt, in_one_process(arrive, (1, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [{"deadline": 60.0}, {"until": "error<=1"}, {"steps": 5}])
def test_what_gives_a_job_an_end_does_not_go_with_watching(given):
    [name] = given
    with pytest.raises(ConfigError, match=f"{name} does not go with --watch"):
        TrainConfig(target="t:T", watch=True, **given)


def test_a_folder_is_needed_to_watch(place):
    assert "there is no folder to watch" in place.train(SMALL, "--watch").check(2).sentence
