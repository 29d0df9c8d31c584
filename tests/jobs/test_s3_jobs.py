"""Whole jobs whose objects lie in a bucket."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load

from jobs.harness import SMALL
from smlt.control.prices import read_prices
from smlt.control.step_cost import ParameterStorePrice, StepCost
from smlt.messages.job import ResourcePlan
from smlt.report.events import read_events
from tests.io.s3_servers import CREDENTIALS, S3Server

OPTIONS = ("--workers", "2", "--steps", "20", "--json", "--quiet")


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        yield server


def test_a_bucket_is_as_good_as_a_directory(place, server):
    server.bucket("training")
    options = ("--objects", "s3://training/here", "--s3-endpoint", server.endpoint)
    ended = place.train(SMALL, *OPTIONS, *options, **CREDENTIALS).check(0)
    plain = place.train(SMALL, *OPTIONS).check(0)
    assert ended.summary["weights_digest"] == plain.summary["weights_digest"]

    def names(prefix):
        listing = server.client().list_objects_v2(Bucket="training", Prefix=prefix)
        return [entry["Key"] for entry in listing.get("Contents", ())]

    job = f"here/jobs/{ended.summary['job_id']}/"
    assert f"{job}job.json" in names(job)
    assert any(name.endswith("manifest.json") for name in names(f"{job}checkpoints/"))
    assert len(names("here/code/")) == 1
    model = server.client().get_object(Bucket="training", Key=f"{job}model.safetensors")
    local = load((place.run / "jobs" / ended.summary["job_id"] / "model.safetensors").read_bytes())
    assert load(model["Body"].read()).keys() == local.keys()
    assert not any("secret" in line for line in json.dumps(ended.summary).splitlines())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--objects", "s3://nowhere"), "there is no bucket nowhere at"),
        pytest.param(
            ("--objects", "s3://training?x=1"), "has an unknown option x", marks=pytest.mark.slow
        ),
    ],
)
def test_a_bucket_that_cannot_be_used_is_named_before_anything_begins(
    place, server, options, words
):
    if "--s3-endpoint" not in options:
        options += ("--s3-endpoint", server.endpoint)
    ended = place.train(SMALL, *OPTIONS, *options, **CREDENTIALS).check(2)
    assert words in ended.sentence
    assert not (place.run / "jobs").exists()


@pytest.mark.slow
def test_a_bucket_is_a_parameter_store_too(place, server):
    """No server to start: shards, claims, leases and all go through S3."""
    server.bucket("fast-enough")
    server.requests.clear()
    options = ("--objects", "s3://fast-enough/objects", "--parameters", "s3://fast-enough/shards")
    options += ("--s3-endpoint", server.endpoint)
    ended = place.train(SMALL, *OPTIONS, *options, limit_s=110, **CREDENTIALS).check(0)
    # What S3 bills, by the requests that it had: PUTs and listings alike, and GETs.
    asked = [(m, path) for m, path in server.requests if "objects" not in path]
    listings = sum(m == "GET" and path.rstrip("/") == "/fast-enough" for m, path in asked)
    puts = listings + sum(m == "PUT" for m, _ in asked)
    gets = sum(m == "GET" for m, _ in asked) - listings
    billed = puts * 0.000005 + gets * 0.0000004
    price = ParameterStorePrice(kind="s3")
    cost = StepCost(prices=read_prices(), store=price, gradient_bytes=164, aggregators=1)
    plan = ResourcePlan(workers=2, memory_mb=1769)
    seconds = ended.summary["seconds"]
    reckoned = 20 * cost.moving(plan) + seconds * price.per_second(2, cost.prices)
    assert 0.6 * billed < reckoned < 1.6 * billed
    plain = place.train(SMALL, *OPTIONS).check(0)
    assert ended.summary["weights_digest"] == plain.summary["weights_digest"]
    assert ended.summary["generations"] == 1
    [folder] = place.run.glob(f"jobs/{ended.summary['job_id']}")
    events = [e for e in read_events(folder / "events.jsonl") if e.name == "phases"]
    assert sum(e.fields["requests"].get("PutObject", 0) for e in events) >= 2 * len(events)
    listing = server.client().list_objects_v2(Bucket="fast-enough", Prefix="shards/")
    assert [entry["Key"] for entry in listing.get("Contents", ())] == []
