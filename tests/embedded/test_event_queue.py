"""Asynchronous invocations: accepted at once, delivered, retried, and waiting when throttled."""

import itertools
import json
import time

import pytest

from embedded.conftest import wait_until


def send(client, name, event, **options):
    return client.api.invoke(
        FunctionName=name, InvocationType="Event", Payload=json.dumps(event), **options
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def journal(cloud):
    """A file that handlers can write: below the run directory, which they see."""
    from pathlib import Path

    directory = Path(cloud.parameters.removeprefix("unix://")).parent / "journals"
    directory.mkdir(exist_ok=True)
    return directory / f"{time.monotonic_ns()}.jsonl"


def test_event_is_accepted_at_once_and_delivered(client, journal):
    name = client.create()
    begun = time.monotonic()
    answer = send(client, name, {"do": "count", "path": str(journal)})
    assert time.monotonic() - begun < 1.0
    assert answer["StatusCode"] == 202
    delivered = wait_until(lambda: lines_of(journal), "the delivery")
    assert [one["id"] for one in delivered] == [answer["ResponseMetadata"]["RequestId"]]


def test_failed_event_is_retried_twice_under_one_request_id(client, journal):
    name = client.create()
    answer = send(client, name, {"do": "count", "path": str(journal), "failures": 9})
    delivered = wait_until(
        lambda: len(lines_of(journal)) == 3 and lines_of(journal), "three attempts"
    )
    assert {one["id"] for one in delivered} == {answer["ResponseMetadata"]["RequestId"]}
    # The delays of this cloud are 0.1 s each.
    assert all(b["time"] - a["time"] >= 0.09 for a, b in itertools.pairwise(delivered))
    wait_until(lambda: client.admin("/_smlt/health")["waiting_events"] == 0, "an empty queue")
    assert len(lines_of(journal)) == 3


def test_event_that_succeeds_at_the_second_attempt_is_done(client, journal):
    name = client.create()
    send(client, name, {"do": "count", "path": str(journal), "failures": 1})
    wait_until(lambda: len(lines_of(journal)) == 2, "two attempts")
    wait_until(lambda: client.admin("/_smlt/health")["waiting_events"] == 0, "an empty queue")
    assert len(lines_of(journal)) == 2


def test_event_of_a_version_without_retries_is_tried_once(client, journal):
    name = client.create()
    client.api.publish_version(FunctionName=name)
    client.api.put_function_event_invoke_config(
        FunctionName=name, Qualifier="1", MaximumRetryAttempts=0
    )
    event = {"do": "count", "path": str(journal), "failures": 9}
    send(client, name, event, Qualifier="1")
    wait_until(lambda: lines_of(journal), "the attempt")
    wait_until(lambda: client.admin("/_smlt/health")["waiting_events"] == 0, "an empty queue")
    assert len(lines_of(journal)) == 1


def test_event_whose_process_dies_is_retried(client, journal):
    name = client.create()
    send(client, name, {"do": "exit", "status": 1})
    wait_until(lambda: len(starts(client, name)) == 3, "three attempts")


def starts(client, name):
    try:
        return [line for line in client.log(name) if line.startswith("START")]
    except client.logs.exceptions.ResourceNotFoundException:
        return []


def test_throttled_events_wait_for_a_place(client, journal):
    name = client.create()
    client.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
    for _ in range(3):
        send(client, name, {"do": "count", "path": str(journal)})
    delivered = wait_until(
        lambda: len(lines_of(journal)) == 3 and lines_of(journal), "three deliveries"
    )
    assert len({one["id"] for one in delivered}) == 3
    assert len(client.environments(name)) == 1
    client.api.delete_function_concurrency(FunctionName=name)


def test_events_for_a_function_without_concurrency_start_when_it_gets_some(client, journal):
    name = client.create()
    client.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    send(client, name, {"do": "count", "path": str(journal)})
    assert client.admin("/_smlt/health")["waiting_events"] == 1
    assert client.environments(name) == []
    client.api.delete_function_concurrency(FunctionName=name)
    wait_until(lambda: lines_of(journal), "the delivery")
