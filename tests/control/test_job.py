"""The durable job state, seen by two clients."""

import asyncio

import pytest

from smlt.control.job import Job, new_job_id
from smlt.errors import NotFoundError, PreconditionError
from smlt.io.directory import DirectoryStore
from smlt.messages import JobSpec, Limits, Position, ResourcePlan

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

    with pytest.raises(PreconditionError, match="another client"):
        asyncio.run(scenario())


def test_job_ids_are_readable_and_cannot_be_guessed():
    first, second = new_job_id("My Task!"), new_job_id("My Task!")
    assert first.startswith("my-task-")
    assert first != second
    assert len(first.rpartition("-")[2]) == 32
