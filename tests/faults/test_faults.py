"""Each fault lands in the phase it names, costs a generation, and not a bit of the weights.

That it landed there is read from the gate at which the ranks stood, or from their own leases; that
it cost a generation, from the event log. After each, no process is left, no key without an expiry,
and the checkpoints are whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import urllib.request
from contextlib import closing, contextmanager, suppress

import boto3
import pytest
import redis
from jobs.harness import SMALL, TASKS, until

from smlt.aggregation.notices import Arrival
from smlt.io import checkpoint
from smlt.io.directory import DirectoryStore
from smlt.messages.job import Position
from tests.io.s3_servers import CREDENTIALS, S3Server
from tests.io.s3_servers import Fault as S3Fault

STEADY = f"{TASKS / 'steady.py'}:Steady"
PHASES = f"{TASKS / 'phases.py'}:"
OPTIONS = ("--workers", "2", "--steps", "24", "--json", "--quiet")
THREE = ("--workers", "3")


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """What an undisturbed run gives, whatever the gates: they only wait."""
    from jobs.harness import Place

    ended = Place(tmp_path_factory.mktemp("calm")).train(STEADY, *OPTIONS).check(0)
    assert ended.summary["generations"] == 1
    return ended.summary["weights_digest"]


@pytest.fixture(scope="module")
def digest_of_three(tmp_path_factory):
    from jobs.harness import Place

    return (
        Place(tmp_path_factory.mktemp("calm"))
        .train(STEADY, *OPTIONS, *THREE)
        .check(0)
        .summary["weights_digest"]
    )


class Fault:
    """A job that stands at a gate, and the checks after it."""

    def __init__(self, place, task, *options, waiting=2, step=8, variables=None):
        self.place = place
        self.gate = place.gate(step)
        given = (*OPTIONS, *options, *self.gate.params)
        self.job = place.start(task, *given, **(variables or {}))
        self.gate.until_there(self.job, waiting)

    @property
    def generations(self):
        return len(self.job.events("generation"))

    def rank_that_is(self, state, pid):
        """The rank of a process, once the client has seen its lease say what it does."""

        def said():
            ranks = self.job.status().get("ranks", [])
            return [r for r in ranks if (r["pid"], r["state"]) == (pid, state)]

        [found] = self.job.until(said, f"a lease that says {state}")
        return found["rank"]

    def kill(self, pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def check_keys_expire(self):
        with self.job.store() as store:
            assert [key for key in store.scan_iter("*") if store.ttl(key) < 0] == []

    def check_end(self, digest, client=None, generations=2, limit_s=90):
        # Of a parameter store that is down nothing is left at all.
        with suppress(redis.ConnectionError):
            self.check_keys_expire()
        self.gate.open()
        ended = (client or self.job).end(limit_s).check(0)
        assert ended.summary["weights_digest"] == digest
        assert self.generations == generations
        assert self.place.left() == []
        asyncio.run(self._check_checkpoints())
        return ended

    async def _check_checkpoints(self):
        """Every checkpoint that has a manifest is whole and verified; there is one at least."""
        objects = DirectoryStore(self.place.run / "objects")
        job_id, read = self.job.folder.name, 0
        async for info in objects.list(f"jobs/{job_id}/checkpoints/"):
            *_, generation, step, name = info.key.split("/")
            if name == "manifest.json":
                at = Position(generation=int(generation), step=int(step))
                await checkpoint.read(objects, job_id, at)
                read += 1
        assert read > 0


def test_worker_killed_in_its_forward_pass(place, digest):
    fault = Fault(place, STEADY)
    fault.check_keys_expire()
    fault.kill(list(fault.gate.waiting())[:1])
    fault.check_end(digest)
    [abort] = fault.job.events("abort")
    assert abort["kind"] == "lost"


@pytest.mark.slow
def test_zombie_changes_nothing(place, digest):
    """A worker is stopped for longer than its lease, and wakes up in a world that went on."""
    fault = Fault(place, STEADY)
    zombie = min(fault.gate.waiting())
    os.kill(zombie, signal.SIGSTOP)
    fault.gate.open()
    fault.job.until(lambda: fault.generations == 2, "the generation without it")
    [abort] = fault.job.events("abort")
    assert "has not been heard of for 10 s" in abort["message"]
    os.kill(zombie, signal.SIGCONT)
    fault.check_end(digest)


def announced(store):
    """All shards and means of the first generation of which there is still a notice."""
    streams = [*store.scan_iter("*:1}:contributions:*"), *store.scan_iter("*:1}:means")]
    entries = [entry for stream in streams for _, entry in store.xrange(stream)]
    return {Arrival.parse({k.decode(): v for k, v in entry.items()}) for entry in entries}


@contextmanager
def throttled(pid):
    """Let a process run for a tenth of the time."""
    done = threading.Event()

    def throttle():
        with suppress(ProcessLookupError):
            while not done.is_set():
                os.kill(pid, signal.SIGSTOP)
                done.wait(0.18)
                os.kill(pid, signal.SIGCONT)
                done.wait(0.02)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
def test_worker_on_a_slow_machine_is_named_and_replaced(place):
    options = ("--workers", "3", "--steps", "200", "--json", "--quiet")
    calm = place.train(STEADY, *options, "--param", "pace=0").check(0).summary["weights_digest"]
    job = place.start(STEADY, *options, "--param", "pace=0.02")
    job.until_step(5)
    pids = job.pids()
    with throttled(pids[1]):
        said = job.until(lambda: job.status()["slow"], "the name of the slow rank")
        [replaced] = job.until(lambda: job.events("replace"), "its replacement")
        job.until(lambda: len(job.events("roster")) == 2, "the next generation")
        until(lambda: not os.path.exists(f"/proc/{pids[1]}"), "the end of the slow process")
    assert said.startswith("rank 1 takes ")
    assert replaced["ranks"] == [1]
    ended = job.end().check(0)
    assert ended.summary["weights_digest"] == calm
    assert ended.summary["generations"] == 2
    assert job.events("abort") == []
    # The others' environments go on, and hold the state already.
    assert len(set(pids.values()) & set(job.pids().values())) == 2
    assert any(text.startswith("rank 1 takes ") for text in ended.summary["notices"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("Imports", "loading"),
        ("Dataset", "loading"),
        ("Loads", "loading"),
        ("Applies", "training"),
    ],
)
def test_worker_killed_in_every_phase(place, digest, phase, state):
    fault = Fault(place, PHASES + phase, waiting=1)
    there = min(fault.gate.waiting())
    rank = fault.rank_that_is(state, there)
    fault.kill([there])
    fault.check_end(digest, limit_s=150)
    [abort] = fault.job.events("abort")
    assert (abort["kind"], abort["rank"]) == ("lost", rank)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "rank"), [("First", 0), ("Last", 1)])
def test_worker_killed_as_it_saves(place, digest, which, rank):
    fault = Fault(place, PHASES + which + "Saves", waiting=1)
    [there] = fault.gate.waiting()
    assert fault.rank_that_is("saving", there) == rank
    fault.kill([there])
    # The survivor writes the part of the dead: the checkpoint is whole, and the job complete.
    fault.check_end(digest, generations=1)


@pytest.mark.slow
def test_worker_killed_while_the_others_wait_for_its_shards(place, digest):
    fault = Fault(place, PHASES + "LastDawdles", "--aggregators", "2", waiting=1)
    # The other rank has put its shards, and owns one of which this one's part is missing.
    said = fault.job.until(lambda: fault.job.status()["stalled"], "a rank that waits")
    assert "waits for" in said
    fault.kill(fault.gate.waiting())
    fault.check_end(digest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "shown_by"),
    [
        pytest.param(1, Arrival(8, 0, 1), id="after its first shard"),
        pytest.param(1, Arrival(8, 1, 0), id="while it owns a shard of which it has a part"),
        pytest.param(0, Arrival(8, 0, 0, is_mean=True), id="after its mean"),
    ],
)
def test_worker_killed_in_the_midst_of_an_exchange(place, digest, victim, shown_by):
    """Rank 1 has put all but its last shard; rank 0 has put its own, and the mean of the first."""
    fault = Fault(place, PHASES + "FirstShard", "--aggregators", "2", waiting=1)
    with fault.job.store() as store:
        fault.job.until(lambda: shown_by in announced(store), "what shows the phase")
        assert Arrival(8, 1, 1, is_mean=True) not in announced(store)
    pids = fault.job.until(lambda: len(fault.job.pids()) == 2 and fault.job.pids(), "the ranks")
    assert fault.gate.waiting() == {pids[1]}
    fault.kill([pids[victim]])
    fault.check_end(digest)
    [abort] = fault.job.events("abort")
    assert (abort["kind"], abort["rank"]) == ("lost", victim)


@pytest.mark.slow
def test_worker_killed_in_a_checkpoint_in_the_background(place, digest):
    fault = Fault(place, PHASES + "Checkpoints", "--checkpoint-every", "0.2s", waiting=1)
    pids = fault.job.until(lambda: len(fault.job.pids()) == 2 and fault.job.pids(), "the ranks")
    [there] = fault.gate.waiting()
    fault.kill([there])
    fault.check_end(digest)
    [abort] = fault.job.events("abort")
    assert (abort["kind"], pids[abort["rank"]]) == ("lost", there)
    # The state that the survivor holds is newer than that of any checkpoint.
    assert fault.job.events("generation")[1]["parent"]["step"] >= 8


@pytest.mark.slow
def test_worker_out_of_memory_ends_the_job_and_a_larger_one_resumes_it(place, digest):
    job = place.start(PHASES + "Hungry", *OPTIONS, "--memory-mb", "256")
    ended = job.end(90).check(1)
    [abort] = job.events("abort")
    assert (abort["kind"], abort["rank"]) == ("memory", 1)
    assert "rank 1 ran out of its 256 MB of memory: try --memory-mb 512" in ended.sentence
    # Seven steps and an evaluation are kept, by the rank that had enough.
    assert (len(job.events("generation")), ended.summary["steps"]) == (1, 7)
    resumed = place.start(job.folder.name, "--memory-mb", "2048", "--json", "--quiet",
                          command="resume").end(90).check(0)  # fmt: skip
    assert resumed.summary["weights_digest"] == digest
    assert resumed.summary["memory_mb"] == 2048
    assert job.events("generation")[1]["parent"]["step"] == 8


@pytest.mark.slow
def test_function_that_runs_out_of_time_in_the_middle_of_a_step(place, digest):
    """All ranks are in their forward pass when Lambda's limit comes: nobody can save."""
    fault = Fault(place, STEADY, "--function-timeout", "20s", "--checkpoint-every", "0.2s")
    [abort] = fault.job.until(lambda: fault.job.events("abort"), "the end of the first ones")
    assert abort["kind"] == "lost"
    assert "the function's time limit has passed" in abort["message"]
    fault.check_end(digest)
    # What had been saved in the background is what it went on from.
    assert fault.job.events("generation")[1]["parent"]["step"] > 0


@pytest.mark.slow
def test_worker_whose_clock_is_off_by_a_minute(place, digest):
    fault = Fault(place, PHASES + "WrongClock", "--checkpoint-every", "0.2s", waiting=0)
    fault.job.until_event("step")
    ended = fault.check_end(digest, generations=1)
    logs = "".join(path.read_text() for path in fault.job.folder.glob("logs/rank-*.log"))
    assert logs.count("this clock is wrong") == 1
    assert ended.summary["notices"] == []


@pytest.mark.slow
def test_worker_on_a_machine_unfit_for_an_exact_job_is_replaced(place):
    calm = place.train(STEADY, *OPTIONS, "--determinism", "exact").check(0)
    fault = Fault(place, PHASES + "MixedFleet", "--determinism", "exact")
    unfit = int(os.readlink(fault.gate.path.with_name("second")))
    # It is gone, and neither of those who have come to the gate.
    until(lambda: not os.path.exists(f"/proc/{unfit}"), "the end of the unfit process")
    assert unfit not in fault.gate.waiting()
    fault.check_end(calm.summary["weights_digest"])
    [abort] = fault.job.events("abort")
    assert (abort["kind"], abort["rank"]) == ("host", 1)


@pytest.mark.slow
def test_events_delivered_once_more(place, digest):
    fault = Fault(place, STEADY)
    cloud, job_id = fault.job.cloud(), fault.job.folder.name
    options = {"region_name": "eu-central-1", "endpoint_url": cloud["endpoint"]}
    keys = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
    with closing(boto3.client("lambda", **options, **keys)) as client:
        [function] = client.list_functions()["Functions"]
        state = json.loads((place.run / "objects" / "jobs" / job_id / "job.json").read_text())
        event = {
            "job_id": job_id,
            "generation": 1,
            "token": state["token"],
            "objects": (place.run / "objects").as_uri(),
            "parameters": cloud["parameters"],
        }
        for rank in (0, 1):
            payload = json.dumps(event | {"rank": rank})
            answer = client.invoke(FunctionName=function["FunctionName"], Payload=payload)
            assert json.load(answer["Payload"]) == {"status": "not needed"}
    assert len(fault.gate.waiting()) == 2
    fault.check_end(digest, generations=1)


@pytest.mark.slow
@pytest.mark.parametrize("victims", [2, 3])
def test_several_or_all_workers_killed_at_once(place, digest_of_three, victims):
    fault = Fault(place, STEADY, *THREE, waiting=3)
    fault.kill(sorted(fault.gate.waiting())[:victims])
    fault.check_end(digest_of_three)
    [abort] = fault.job.events("abort")
    assert abort["kind"] == "lost"
    # While one lives only the step that was under way is lost; no checkpoint had been made.
    assert fault.job.events("generation")[1]["parent"]["step"] == (8 if victims < 3 else 0)


@pytest.mark.slow
def test_worker_killed_in_the_abort_of_another(place, digest_of_three):
    fault = Fault(place, STEADY, *THREE, waiting=3)
    first, second, _ = fault.gate.waiting()
    fault.kill([first])
    with fault.job.store() as store:
        until(lambda: list(store.scan_iter("*:1}:abort")), "the abort")
    assert fault.generations == 1
    fault.kill([second])
    fault.check_end(digest_of_three)


@pytest.mark.slow
def test_valkey_killed(place, digest):
    fault = Fault(place, STEADY)
    with urllib.request.urlopen(f"{fault.job.cloud()['endpoint']}/_smlt/health") as answer:
        os.kill(json.load(answer)["valkey_pid"], signal.SIGKILL)
    fault.check_end(digest)
    [abort] = fault.job.events("abort")
    assert abort["kind"] == "store"


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["flush", "evict", "full"])
def test_parameter_store_in_trouble(place, digest, trouble):
    fault = Fault(place, STEADY)
    with fault.job.store() as store:
        if trouble == "flush":
            store.flushall()
        elif trouble == "evict":
            store.config_set("maxmemory-policy", "allkeys-random")
            store.config_set("maxmemory", "1")
        else:
            store.config_set("maxmemory", "1")
        fault.gate.open()
        fault.job.until(lambda: fault.job.events("abort") or fault.generations > 1, "the abort", 90)
        store.config_set("maxmemory", "0")
        store.config_set("maxmemory-policy", "noeviction")
    ended = fault.job.end(120)
    if ended.code == 0:
        assert ended.summary["weights_digest"] == digest
        assert fault.generations > 1
    else:
        # A store without room ends the job in a sentence, and what was saved is kept.
        ended.check(1)
        assert trouble != "flush"
        assert os.path.isdir(ended.summary["checkpoint"])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed worker", "stop"])
def test_object_store_out_for_a_minute(place, digest, trouble):
    """Nobody can save, or draw a generation: what the survivor holds waits in its memory."""
    with S3Server() as server:
        bucket = f"out-for-a-{trouble.replace(' ', '-')}"
        server.bucket(bucket)
        options = ("--objects", f"s3://{bucket}/here", "--s3-endpoint", server.endpoint)
        fault = Fault(place, STEADY, *options, variables=CREDENTIALS)
        back = time.monotonic() + 60.0

        def refuse(method, path):
            if time.monotonic() < back:
                raise S3Fault(503, "ServiceUnavailable")

        server.before = refuse
        if trouble == "killed worker":
            fault.kill(list(fault.gate.waiting())[:1])
        else:
            fault.job.signal(signal.SIGINT)
        fault.gate.open()
        said = fault.job.until(lambda: fault.job.status()["stalled"], "what is waited for", 60)
        assert f"s3://{bucket}/here" in said
        if trouble == "stop":
            ended = fault.job.end(150).check(130)
            # The step that was under way at the signal, and what had been done before: no less.
            assert ended.summary["steps"] >= fault.gate.step
            fault.job = place.start(fault.job.folder.name, "--json", "--quiet", command="resume",
                                    **CREDENTIALS)  # fmt: skip
        ended = fault.job.end(150).check(0)
        assert time.monotonic() > back
        assert ended.summary["weights_digest"] == digest
        if trouble == "killed worker":
            assert fault.generations == 2
            drawn = fault.job.events("generation")[-1]
            assert drawn["parent"]["step"] >= fault.gate.step - 1
            assert any("it is waited for up to 300 s" in text for text in ended.summary["notices"])
        place.check_nothing_is_left(10)


@pytest.mark.slow
def test_object_store_that_throttles_and_fails_all_the_time(place, digest):
    """Of its answers one in five is an error, of either kind, from beginning to end."""
    with S3Server() as server:
        server.bucket("moody")
        options = ("--objects", "s3://moody/here", "--s3-endpoint", server.endpoint)
        moods, refused = random.Random(1), []

        def refuse(method, path):
            if moods.random() < 0.2:
                refused.append(method)
                slow, wrong = S3Fault(503, "SlowDown"), S3Fault(500, "InternalError")
                raise slow if len(refused) % 2 else wrong

        server.before = refuse
        job = place.start(STEADY, *OPTIONS, *options, "--checkpoint-every", "0.2s", **CREDENTIALS)
        ended = job.end(150).check(0)
        assert len(refused) > 10
        assert {"GET", "PUT"} <= set(refused)
        assert ended.summary["weights_digest"] == digest
        assert ended.summary["generations"] == 1
        place.check_nothing_is_left(10)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_training_for_minutes_in_functions_of_twenty_seconds(place):
    """Steps of a second, one in a dozen of four: hand-overs fall into all kinds of moments."""
    options = ("--workers", "2", "--steps", "60", "--param", "pace=0.05", "--json", "--quiet")
    calm = place.train(f"{PHASES}Uneven", *options).check(0).summary["weights_digest"]
    slow = ("--param", "second=1.0", "--function-timeout", "20s")
    ended = place.train(f"{PHASES}Uneven", *options, *slow, limit_s=300).check(0)
    assert ended.summary["weights_digest"] == calm
    assert ended.summary["generations"] >= 4
    # Each of them went on where the one before had been: nothing was trained twice but a cut step.
    job = place.jobs[-1]
    aborts = job.events("abort")
    assert all(abort["kind"] == "handover" for abort in aborts)
    assert len(job.events("step")) <= 60 + len(aborts)


@pytest.mark.slow
def test_worker_that_waits_when_its_time_ends_hands_over(place, digest):
    """Its own state is newer than any checkpoint; another rank stands still until both are over."""
    options = ("--aggregators", "2", "--function-timeout", "20s")
    fault = Fault(place, PHASES + "LastDawdles", *options, waiting=1)
    [abort] = fault.job.until(lambda: fault.job.events("abort"), "the abort")
    assert abort["kind"] == "handover"
    assert "until its function's time was nearly over" in abort["message"]
    fault.gate.open()
    ended = fault.check_end(digest)
    assert ended.summary["generations"] == 2
    # Seven training steps and the evaluation after the fourth.
    assert fault.job.events("generation")[1]["parent"]["step"] == 8


@pytest.mark.slow
def test_function_that_fills_its_tmp(place):
    ended = place.train(f"{PHASES}FillsTmp", *OPTIONS, limit_s=90).check(1)
    assert "No space left on device" in ended.sentence
    assert os.path.isdir(ended.summary["checkpoint"])


@pytest.mark.slow
def test_function_that_fills_its_tmp_once_costs_a_generation(place, digest):
    task = (f"{PHASES}FillsTmp", *OPTIONS, "--param", "gate=" + str(place.gate(8).path))
    ended = place.train(*task, limit_s=90).check(0)
    assert ended.summary["weights_digest"] == digest
    [abort] = place.jobs[-1].events("abort")
    assert (abort["kind"], abort["step"]) == ("task", 8)
    assert "No space left on device" in abort["message"]
    assert len(place.jobs[-1].events("generation")) == 2
    place.check_nothing_is_left(10)


@pytest.mark.slow
def test_client_killed_and_attached_to(place, digest):
    fault = Fault(place, STEADY)
    fault.job.signal(signal.SIGKILL)
    fault.job.process.wait()
    attached = place.start(fault.job.folder.name, "--json", command="attach")
    with fault.job.store() as store:
        until(lambda: list(store.scan_iter("*:1}:abort")), "the end of the first generation")
    fault.check_end(digest, attached)


@pytest.mark.slow
def test_client_that_was_away_goes_on_with_its_job(place, digest):
    """A laptop is closed: the workers save and leave. It is opened, and nobody else has come."""
    fault = Fault(place, STEADY, "--orphan-timeout", "1s")
    fault.job.signal(signal.SIGSTOP)
    with fault.job.store() as store:
        until(lambda: not list(store.scan_iter("*:1}:client")), "the end of the client's lease")
    time.sleep(7)  # five is how long it may be gone
    fault.gate.open()
    checkpoints = f"jobs/{fault.job.folder.name}/checkpoints/*/*/manifest.json"
    saved = (place.run / "objects").glob
    until(lambda: len(list(saved(checkpoints))) > 1, "what the workers have saved", 60)
    fault.job.signal(signal.SIGCONT)
    ended = fault.check_end(digest)
    assert any("had not seen this client for 5 s" in text for text in ended.summary["notices"])
    assert fault.job.events("abort") == []


@pytest.mark.slow
def test_cloud_killed_and_the_job_resumed(place, digest):
    calm = place.train(SMALL, *OPTIONS).check(0).summary["weights_digest"]
    fault = Fault(place, SMALL)
    os.kill(fault.job.cloud()["pid"], signal.SIGKILL)
    fault.gate.open()
    fault.job.end(30).check(1)
    place.check_nothing_is_left(10)
    resumed = place.smlt("resume", fault.job.folder.name, "--json", "--quiet").check(0)
    assert resumed.summary["weights_digest"] == calm
