"""Data that arrives in bursts: one job trains on each in turn, and forgets nothing between them."""

import asyncio
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from smlt.control.artifact_manager import upload_data
from smlt.control.bursts import WatchedFolder, with_more_data
from smlt.io.keys import JobObjects
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.weights import read_weights
from smlt.messages.job import JobSpec, Origin
from smlt.worker.sample_order import SampleOrder
from tests.control.town import Town

TASK = """
import numpy as np
import smlt

class Online(smlt.Task):
    def dataset(self, data, split):
        return [x for name in data.added for x in np.asarray(data[name])]

    def initialize(self, seed, total_steps):
        assert total_steps is None  # nobody knows how much will come
        self.w = np.random.default_rng(seed).normal(size=50).astype(np.float32)
        self.m = np.zeros(50, np.float32)

    def state(self):
        return {"w": self.w, "m": self.m}

    def weights(self):
        return {"w": self.w}

    def gradients(self, samples, into, ready):
        for x in samples:
            into["w"] += np.sin(self.w * x)
        return smlt.Contribution(float(sum(np.cos(self.w * x).sum() for x in samples)))

    def apply(self, mean, present):
        self.m *= 0.9
        self.m += mean["w"]
        self.w -= 0.05 * self.m
"""
BURSTS = [np.linspace(-1, 1, n, dtype=np.float32) for n in (96, 40, 64)]
EPOCHS = 2


class OnlineTown(Town):
    """Its bursts come as soon as they are waited for; then it is told to end."""

    def __init__(self, folder, **settings):
        settings = {"epochs": EPOCHS, "watches": True} | settings
        super().__init__(folder, target="online.py:Online", **settings)
        (folder / "online.py").write_text(TASK)
        self.data = folder / "data"
        self.data.mkdir()
        self.came, self.idle = 0, []
        self.add()

    def add(self):
        np.save(self.data / f"burst-{self.came}.npy", BURSTS[self.came])
        self.came += 1

    async def more(self):
        assert not self.cloud.running  # no function is there between bursts
        self.idle.append((self.progress.state, len(self.cloud.invoked)))
        if self.came == len(BURSTS):
            await self.leader.request_stop()
            await asyncio.sleep(60)
        self.add()
        return await self.folder_watch.more()

    async def scheduler(self):
        async def quickly(seconds):
            await asyncio.sleep(0)

        key = await upload_data(self.objects, self.data)
        self.spec = replace(self.spec, data=key)
        self.folder_watch = WatchedFolder(self.data, self.objects, key, sleep=quickly)
        self.more_data = self.more
        self.leader = await super().scheduler()
        return self.leader

    async def weights(self):
        return (await read_weights(self.objects, JobObjects("drift").model))["w"].numpy()


def in_one_process():
    """The job as a loop over bursts, epochs and whole batches, in float64."""
    w = np.random.default_rng(5).normal(size=50).astype(np.float32).astype(np.float64)
    m = np.zeros(50)
    for burst, x in enumerate(BURSTS):
        order = SampleOrder(len(x), 16, 16, seed=5)
        for epoch in range(EPOCHS * burst, EPOCHS * (burst + 1)):
            for index in range(order.steps_in(epoch)):
                rows = order.batch(epoch, index, range(16))
                m = 0.9 * m + np.mean([np.sin(w * float(x[row])) for row in rows], axis=0)
                w = w - 0.05 * m
    return w


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    async def scenario():
        town = OnlineTown(tmp_path_factory.mktemp("quiet"))
        outcome = await town.run()
        assert (outcome.status, outcome.generations) == ("completed", len(BURSTS))
        assert town.idle == [("waiting", 3), ("waiting", 6), ("waiting", 9)]
        assert [event["epochs"] for event in town.events("burst")] == [4, 6]
        steps = [(event["step"], event["epoch"]) for event in town.events("step")]
        assert [step for step, _ in steps] == list(range(1, 2 * (6 + 3 + 4) + 1))
        assert [epoch for _, epoch in steps] == [0] * 6 + [1] * 6 + [2] * 3 + [3] * 3 + [4] * 4 + [
            5
        ] * 4
        return await town.weights()

    return asyncio.run(scenario())


def test_bursts_are_trained_on_as_one_loop_would(undisturbed):
    np.testing.assert_allclose(undisturbed, in_one_process(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("seed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_ranks_killed_in_the_middle_of_bursts_leave_no_trace(tmp_path, undisturbed, seed):
    rng = random.Random(seed)
    town = OnlineTown(tmp_path)

    async def killer(scheduler):
        for _ in range(3):
            at = town.cloud.computed + rng.randint(1, 40)
            await town.until(lambda at=at: town.cloud.computed >= at)
            town.cloud.kill(rng.randrange(3))

    async def scenario():
        outcome = await town.run(killer)
        return outcome, await town.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.status == "completed"
    assert np.array_equal(weights, undisturbed)


def test_each_burst_begins_where_the_one_before_ended():
    spec = JobSpec(target="t:T", epochs=3)
    second = with_more_data(spec, "b", 20, 17)
    assert (second.data, second.origin, second.epochs) == (
        "b",
        Origin(step=20, epoch=3, trained=17),
        6,
    )
    third = with_more_data(second, "c", 50, 44)
    assert (third.origin, third.epochs) == (Origin(step=50, epoch=6, trained=44), 9)


class Waits:
    """Instead of waiting, do what is next on the list."""

    def __init__(self, *deeds):
        self.deeds, self.waited = list(deeds), 0.0

    async def __call__(self, seconds):
        self.waited += seconds
        if self.deeds:
            self.deeds.pop(0)()
        elif self.waited > 1000:
            raise TimeoutError


def watching(folder, *deeds):
    async def scenario():
        objects = MemoryObjectStore(f"watching-{folder.name}")
        (folder / "old.bin").write_bytes(b"old")
        known = await upload_data(objects, folder)
        waits = Waits(*deeds)
        key = await WatchedFolder(folder, objects, known, sleep=waits).more()
        text, _ = await objects.get(key)
        return json.loads(text), waits.waited

    return asyncio.run(scenario())


def test_a_file_that_is_still_written_to_is_waited_for(tmp_path):
    def write(data):
        return lambda: (tmp_path / "new.bin").write_bytes(data)

    listed, waited = watching(tmp_path, *(write(b"x" * n) for n in range(1, 9)))
    assert listed["files"]["new.bin"]["size"] == 8
    assert (sorted(listed["files"]), listed["added"]) == (["new.bin", "old.bin"], ["new.bin"])
    assert waited >= 8 * 0.5 + 1.5


def test_what_changed_counts_as_new_and_what_was_touched_does_not(tmp_path):
    old = tmp_path / "old.bin"
    touched = [lambda at=at: os.utime(old, (at, at)) for at in (1, 2, 3)]
    listed, _ = watching(tmp_path, *touched, *[lambda: None] * 20, lambda: old.write_bytes(b"NEW"))
    assert listed["added"] == ["old.bin"]


def test_a_folder_that_is_emptied_is_no_burst(tmp_path):
    with pytest.raises(TimeoutError):
        watching(tmp_path, (tmp_path / "old.bin").unlink)
