import itertools
import logging
import random
import threading
import traceback

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from smlt.errors import TaskError
from smlt.worker.minibatch_buffer import MinibatchBuffer, map_style

LIMIT_S = 10.0
BATCHES = [[0, 1, 2], [3], [], [4, 0]]


class Squares:
    """Counts and locates its reads."""

    def __init__(self):
        self.threads = set()
        self.read = []
        self.gate = threading.Event()
        self.gate.set()

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self.gate.wait(LIMIT_S)
        self.threads.add(threading.current_thread())
        self.read.append(index)
        return index * index


def test_batches_come_in_order_from_another_thread():
    dataset = Squares()
    with MinibatchBuffer(dataset, BATCHES) as buffer:
        assert list(buffer) == [[0, 1, 4], [9], [], [16, 0]]
    assert len(dataset.threads) == 2  # the probe's and the reader's


def test_no_thread_outlives_the_buffer():
    before = threading.active_count()
    for taken in (0, 1, 4):
        with MinibatchBuffer(Squares(), ([i] for i in itertools.count())) as buffer:
            for _ in range(taken):
                next(buffer)
        assert threading.active_count() == before


def test_no_more_than_the_depth_is_read_ahead():
    dataset = Squares()
    with MinibatchBuffer(dataset, ([i] for i in range(100)), depth=3) as buffer:
        assert next(buffer) == [0]
        # A second taken batch shows that the reader has come past the first bound.
        assert next(buffer) == [1]
    # One probe, two taken, three ready, one in hand.
    assert len(dataset.read) <= 7


class Blocks(Squares):
    def __getitem__(self, index):
        super().__getitem__(index)
        return {"x": [np.zeros(1 << 20, np.uint8)], "y": torch.zeros(10)}


def test_no_more_than_the_bytes_is_read_ahead():
    dataset = Blocks()
    batches = ([i] for i in range(100))
    with MinibatchBuffer(dataset, batches, depth=50, max_bytes=3 << 20) as buffer:
        for _ in range(5):
            next(buffer)
    assert len(dataset.read) <= 1 + 5 + 3 + 1


def test_a_batch_larger_than_the_limit_still_comes():
    with MinibatchBuffer(Blocks(), [[0, 1], [2, 3]], max_bytes=1) as buffer:
        assert [len(batch) for batch in buffer] == [2, 2]


class Failing(Squares):
    def __getitem__(self, index):
        if index == 3:
            raise ZeroDivisionError("record 3")
        return super().__getitem__(index)


def test_an_exception_comes_in_its_turn_with_its_own_traceback():
    with MinibatchBuffer(Failing(), BATCHES) as buffer:
        assert next(buffer) == [0, 1, 4]
        with pytest.raises(ZeroDivisionError, match="record 3") as error:
            next(buffer)
    names = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert names[-1] == "__getitem__"


def test_an_exception_in_the_first_record_comes_at_once():
    with pytest.raises(ZeroDivisionError), MinibatchBuffer(Failing(), [[3]]):
        pass


def test_a_record_that_does_not_come_is_an_error_and_closing_does_not_hang(caplog):
    class Stuck(Squares):
        def __getitem__(self, index):
            if index == 99:
                self.gate.clear()
            return super().__getitem__(index)

    dataset = Stuck()
    buffer = MinibatchBuffer(dataset, [[0], [99]], limit_s=0.2)
    with caplog.at_level(logging.WARNING), buffer:
        assert next(buffer) == [0]
        with pytest.raises(TaskError, match=r"Stuck did not return the records of a batch within"):
            next(buffer)
    assert "still being read" in caplog.text
    dataset.gate.set()
    assert buffer.close()


class Transforming(Squares):
    def transform(self, record):
        return record, threading.current_thread(), random.random(), float(torch.rand(()))


def test_transforms_run_on_the_callers_thread_after_its_seeding():
    def run():
        with MinibatchBuffer(Transforming(), [[0, 1], [2]]) as buffer:
            taken = []
            for seed in (5, 6):
                random.seed(seed)
                torch.manual_seed(seed)
                taken += next(buffer)
            return taken

    first, second = run(), run()
    assert first == second
    assert {sample[1] for sample in first} == {threading.current_thread()}
    random.seed(6)
    assert first[2][2] == random.random()


DRAWS = {
    "random": random.random,
    "numpy": np.random.random,
    "torch": lambda: torch.rand(()),
}


@pytest.mark.parametrize("source", DRAWS)
def test_a_dataset_that_draws_is_read_on_the_callers_thread_with_a_notice(source, caplog):
    class Drawing(Squares):
        def __getitem__(self, index):
            super().__getitem__(index)
            return float(DRAWS[source]())

    def run():
        dataset = Drawing()
        with MinibatchBuffer(dataset, [[0], [1]]) as buffer:
            taken = []
            for seed in (5, 6):
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                torch.manual_seed(seed)
                taken.append(next(buffer))
            assert next(buffer, None) is None
        assert dataset.threads == {threading.current_thread()}
        return taken

    with caplog.at_level(logging.WARNING):
        assert run() == run()
    assert "method transform(record)" in caplog.text


def test_the_probe_leaves_the_generators_as_they_were():
    class Drawing(Squares):
        def __getitem__(self, index):
            return random.random()

    random.seed(1)
    with MinibatchBuffer(Drawing(), [[0]]):
        drawn = random.random()
    random.seed(1)
    assert drawn == random.random()


def test_a_dataset_may_read_many_records_at_once():
    class Batched(Squares):
        def __getitems__(self, indices):
            return [f"{indices}:{index}" for index in indices]

    with MinibatchBuffer(Batched(), [np.array([1, 2])]) as buffer:
        assert next(buffer) == ["[1, 2]:1", "[1, 2]:2"]


def test_no_batches_are_the_end_at_once():
    with MinibatchBuffer(Squares(), []) as buffer:
        assert list(buffer) == []


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(3))


TENSORS = TensorDataset(torch.arange(3))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DataLoader(TENSORS), "a DataLoader: return its dataset"),
        (RandomSampler(TENSORS), "a Sampler: return the dataset"),
        (Endless(), "Endless, which cannot be indexed.*__len__ and __getitem__"),
        (iter([1]), "list_iterator, which cannot be indexed"),
        (None, "NoneType, which cannot be indexed"),
    ],
)
def test_what_is_no_map_style_dataset_is_refused(dataset, message):
    with pytest.raises(TaskError, match=message) as error:
        map_style(dataset, "Mnist", "train")
    assert str(error.value).startswith("dataset() of Mnist for the split 'train' returned")


@pytest.mark.parametrize("dataset", [[1, 2], TENSORS, np.arange(3)])
def test_map_style_datasets_are_taken(dataset):
    assert map_style(dataset, "Mnist", "train") is dataset
