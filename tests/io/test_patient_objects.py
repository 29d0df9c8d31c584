"""An object store that is out for a while, seen through a client that waits for it."""

from __future__ import annotations

import asyncio

import pytest
from object_store_contract import ObjectStoreContract

from smlt.errors import NotFoundError, PreconditionError, StoreUnreachableError
from smlt.io import patient_objects
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.patient_objects import PatientObjects


@pytest.fixture(autouse=True)
def _empty():
    forget("patient")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(patient_objects, "PAUSE_S", 0.001)
    monkeypatch.setattr(patient_objects, "TELL_S", 0.01)


class Out(MemoryObjectStore):
    """Answers nothing so many times; of a write that it does not answer, it may do the work."""

    def __init__(self, name, times, *, works=False):
        super().__init__(name)
        self.times, self.works = times, works

    def _refuse(self):
        if self.times:
            self.times -= 1
            raise StoreUnreachableError("it answers 503")

    async def get(self, key):
        self._refuse()
        return await super().get(key)

    def read_range(self, key, start, length):
        self._refuse()
        return super().read_range(key, start, length)

    async def put(self, key, data, **conditions):
        if self.works and self.times:
            await super().put(key, data, **conditions)
        self._refuse()
        return await super().put(key, data, **conditions)

    async def list(self, prefix):
        async for info in super().list(prefix):
            yield info
            self._refuse()


def patient(store, limit_s=60.0):
    said = []
    return PatientObjects(store, limit_s=limit_s, on_wait=lambda *told: said.append(told)), said


class TestPatientObjects(ObjectStoreContract):
    @pytest.fixture
    def store(self):
        return patient(MemoryObjectStore("patient"))[0]

    @pytest.fixture
    def twin(self):
        return MemoryObjectStore("patient")


def test_call_is_made_again_and_what_is_waited_for_is_told(impatient):
    async def scenario():
        store, said = patient(Out("patient", 0))
        await store.put("a/b", b"x")
        store._store.times = 3
        return await store.get("a/b"), said

    (data, _), said = asyncio.run(scenario())
    assert data == b"x"
    # A call that takes long is told as well, without a reason.
    why = [told for told in said if told[1] or not told[0]]
    assert why == [*[("memory://patient to read a/b", "it answers 503")] * 3, ("", "")]


def test_call_that_only_takes_long_is_told_as_well(impatient):
    said, heard = [], asyncio.Event()

    def on_wait(*told):
        said.append(told)
        heard.set()

    class Slow(MemoryObjectStore):
        async def get(self, key):
            await heard.wait()
            return await super().get(key)

    async def scenario():
        store = PatientObjects(Slow("patient"), limit_s=60, on_wait=on_wait)
        await store.put("a", b"x")
        await store.get("a")

    asyncio.run(scenario())
    assert said == [("memory://patient to read a", ""), ("", "")]


def test_oldest_of_several_waits_is_told_until_all_are_over(impatient):
    async def scenario():
        store, said = patient(Out("patient", 0))
        await store.put("a", b"")
        await store.put("b", b"")
        store._store.times = 5
        await asyncio.gather(store.get("a"), store.get("b"))
        return said

    said = asyncio.run(scenario())
    assert said[0] == ("memory://patient to read a", "it answers 503")
    assert said[-1] == ("", "")
    assert said.count(("", "")) == 1


def test_outage_that_outlasts_the_limit_is_an_error(impatient):
    store, said = patient(Out("patient", 10**6), limit_s=0.05)
    with pytest.raises(StoreUnreachableError, match="503"):
        asyncio.run(store.get("a"))
    with pytest.raises(StoreUnreachableError, match="503"):
        store.read_range("a", 0, 1)
    assert said[-1] == ("", "")


def test_blocking_read_waits_as_well(impatient):
    store, _ = patient(Out("patient", 0))
    asyncio.run(store.put("a", b"abc"))
    store._store.times = 3
    assert store.read_range("a", 1, 2) == b"bc"


def test_other_errors_are_not_waited_for(impatient):
    store, _ = patient(Out("patient", 0))
    with pytest.raises(NotFoundError):
        asyncio.run(store.get("nothing"))


@pytest.mark.parametrize("condition", ["if_absent", "if_match"])
def test_conditional_write_whose_answer_was_lost_is_known_again(impatient, condition):
    async def scenario():
        plain = MemoryObjectStore("patient")
        etag = await plain.put("a", b"old") if condition == "if_match" else ""
        given = {"if_match": etag} if etag else {"if_absent": True}
        store, _ = patient(Out("patient", 1, works=True))
        written = await store.put("a", [b"n", b"ew"], **given)
        return written, await plain.get("a")

    written, there = asyncio.run(scenario())
    assert there == (b"new", written)


def test_conditional_write_that_lost_its_race_during_the_outage_is_refused(impatient):
    async def scenario():
        plain = MemoryObjectStore("patient")
        store, _ = patient(Out("patient", 2))
        writing = asyncio.create_task(store.put("a", b"ours", if_absent=True))
        await asyncio.sleep(0)
        await plain.put("a", b"theirs")
        with pytest.raises(PreconditionError):
            await writing
        return await plain.get("a")

    assert asyncio.run(scenario())[0] == b"theirs"


def test_list_that_breaks_off_begins_again(impatient):
    async def scenario():
        store, _ = patient(Out("patient", 0))
        for name in "abc":
            await store.put(f"x/{name}", b"")
        store._store.times = 1
        return [info.key async for info in store.list("x/")]

    assert asyncio.run(scenario()) == ["x/a", "x/b", "x/c"]
