"""The durable job state, seen by two clients."""

import asyncio
from dataclasses import replace

import pytest

from smlt.control.job import Job, new_job_id
from smlt.errors import JobHeldError, NotFoundError, PreconditionError, StoreError
from smlt.io.directory import DirectoryStore
from smlt.messages.job import ClientHold, JobSpec, Limits, Position, ResourcePlan

SPEC = JobSpec(target="train.py:Task", seed=3, limits=Limits(lease_s=2.5))
PLAN = ResourcePlan(workers=4, memory_mb=1769)


@pytest.fixture
def objects(tmp_path):
    return DirectoryStore(tmp_path)


def test_job_comes_back_as_it_was_written(objects):
    async def scenario():
        job = await Job.create(objects, "j", SPEC, PLAN)
        await job.draw(None, PLAN)
        await job.draw(Position(generation=1, step=7), PLAN)
        return job.state, (await Job.load(objects, "j")).state

    written, read = asyncio.run(scenario())
    assert read == written
    assert read.spec.limits.lease_s == 2.5
    assert (read.generation, read.parent) == (2, Position(generation=1, step=7))


def test_second_job_of_the_same_id_is_refused(objects):
    async def scenario():
        await Job.create(objects, "j", SPEC, PLAN)
        await Job.create(objects, "j", SPEC, PLAN)

    with pytest.raises(PreconditionError):
        asyncio.run(scenario())


def test_job_that_does_not_exist_is_not_found(objects):
    with pytest.raises(NotFoundError):
        asyncio.run(Job.load(objects, "nobody"))


@pytest.mark.parametrize("text", [b"", b'{"job_id": "j"', b"[]", b'{"job_id": "j"}', b"\xff"])
def test_damaged_state_is_named(objects, text):
    async def scenario():
        await Job.create(objects, "j", SPEC, PLAN)
        await objects.put("jobs/j/job.json", text)
        await Job.load(objects, "j")

    with pytest.raises(StoreError, match=r"jobs/j/job\.json, is damaged"):
        asyncio.run(scenario())


def test_stop_asked_for_by_another_client_survives_our_next_change(objects):
    async def scenario():
        ours = await Job.create(objects, "j", SPEC, PLAN)
        theirs = await Job.load(objects, "j")
        await theirs.request_stop()
        await ours.end("stopped", "why", None)
        return (await Job.load(objects, "j")).state

    state = asyncio.run(scenario())
    assert state.stop_requested
    assert state.status == "stopped"


def test_client_that_was_overtaken_can_draw_no_generation(objects):
    async def scenario():
        ours = await Job.create(objects, "j", SPEC, PLAN)
        theirs = await Job.load(objects, "j")
        await theirs.draw(None, PLAN)
        await ours.draw(None, PLAN)

    with pytest.raises(JobHeldError, match="another client"):
        asyncio.run(scenario())


US = ClientHold(host="here", pid=1, since=0.0)
THEM = ClientHold(host="there", pid=77, since=1_700_000_000.0)


class Clock:
    """A monotonic clock that only sleeping moves on; something happens at each sleep."""

    def __init__(self, happens=None):
        self.now = 0.0
        self.happens = happens

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        if self.happens:
            await self.happens(self.now)


def test_job_is_taken_over_once_its_lease_has_stood_still_for_its_time(objects):
    async def scenario():
        await Job.create(objects, "j", SPEC, PLAN, THEM)
        ours, clock = await Job.load(objects, "j"), Clock()
        await ours.take_over(US, clock=clock, sleep=clock.sleep)
        return clock.now, (await Job.load(objects, "j")).state

    waited, state = asyncio.run(scenario())
    assert SPEC.limits.hold_s < waited < SPEC.limits.hold_s + 2
    assert (state.client, state.token) == (US, 2)


def test_outage_of_the_store_is_no_sign_of_a_clients_death(objects):
    """Neither client could reach the store; the one that leads beats as soon as it can."""

    async def scenario():
        theirs = await Job.create(objects, "j", SPEC, PLAN, THEM)
        ours, clock = await Job.load(objects, "j"), Clock()
        looks = 0

        async def refresh(reading=ours.refresh):
            nonlocal looks
            looks += 1
            if looks == 3:
                clock.now += 60
            state = await reading()
            if looks == 5:
                await theirs.renew()
            return state

        ours.refresh = refresh
        await ours.take_over(US, clock=clock, sleep=clock.sleep)

    with pytest.raises(JobHeldError, match="process 77 on there"):
        asyncio.run(scenario())


def test_job_whose_client_lives_is_left_to_it(objects):
    async def scenario():
        theirs = await Job.create(objects, "j", SPEC, PLAN, THEM)

        async def beat(now):
            if now == 3:
                await theirs.renew()

        ours, clock = await Job.load(objects, "j"), Clock(beat)
        await ours.take_over(US, clock=clock, sleep=clock.sleep)

    with pytest.raises(JobHeldError, match="process 77 on there, since 2023-11-1"):
        asyncio.run(scenario())


def test_client_that_slept_through_its_lease_can_change_nothing(objects):
    async def scenario():
        theirs = await Job.create(objects, "j", SPEC, PLAN, THEM)
        ours, clock = await Job.load(objects, "j"), Clock()
        await ours.take_over(US, clock=clock, sleep=clock.sleep)
        await ours.draw(None, PLAN)
        for change in (theirs.renew(), theirs.draw(None, PLAN), theirs.end("failed", "x", None)):
            with pytest.raises(JobHeldError, match="process 1 on here"):
                await change
        return (await Job.load(objects, "j")).state

    state = asyncio.run(scenario())
    assert (state.status, state.generation, state.client) == ("running", 1, US)


def test_stop_that_is_asked_for_meanwhile_is_no_sign_of_life(objects):
    async def scenario():
        await Job.create(objects, "j", SPEC, PLAN, THEM)
        stranger = await Job.load(objects, "j")

        async def ask(now):
            if now == 5:
                await stranger.request_stop()

        ours, clock = await Job.load(objects, "j"), Clock(ask)
        await ours.take_over(US, clock=clock, sleep=clock.sleep)
        return ours.state

    state = asyncio.run(scenario())
    assert state.stop_requested
    assert state.client == US


def test_two_who_take_over_at_once_are_not_both_the_client(objects):
    async def scenario():
        await Job.create(objects, "j", SPEC, PLAN, THEM)
        clients = [await Job.load(objects, "j") for _ in range(2)]
        clocks = [Clock(), Clock()]
        return await asyncio.gather(
            *(
                job.take_over(replace(US, pid=number), clock=clock, sleep=clock.sleep)
                for number, (job, clock) in enumerate(zip(clients, clocks, strict=True))
            ),
            return_exceptions=True,
        )

    results = asyncio.run(scenario())
    assert sorted(type(result).__name__ for result in results) == ["JobHeldError", "NoneType"]


def test_job_ids_are_readable_and_cannot_be_guessed():
    first, second = new_job_id("My Task!"), new_job_id("My Task!")
    assert first.startswith("my-task-")
    assert first != second
    assert len(first.rpartition("-")[2]) == 32
