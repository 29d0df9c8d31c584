"""What `smlt.Aggregator` computes, against float64 NumPy."""

import array
import ctypes
import mmap
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smlt.aggregation.arrays import NumpyItem
from smlt.errors import UserError


def gradients(rank, shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng([seed, rank])
    return {
        name: rng.standard_normal(shape).astype(dtype) if np.dtype(dtype).kind == "f"
        else rng.integers(-1000, 1000, shape).astype(dtype)
        for name, shape in shapes.items()
    }  # fmt: skip


def mean(world_size, shapes, weights=None, **kind):
    """The oracle: the weighted mean in float64."""
    every = [gradients(rank, shapes, **kind) for rank in range(world_size)]
    weights = np.ones(world_size) if weights is None else np.array(weights)
    return {
        name: sum(
            w * grads[name].astype(np.float64) for w, grads in zip(weights, every, strict=True)
        )
        / weights.sum()
        for name in shapes
    }


SHAPES = {"weight": (7, 33), "bias": (33,), "scalar": (), "empty": (0, 3), "long": (5000,)}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_allreduce_gives_every_rank_the_mean(ranks, url, world_size):
    def act(aggregator, rank):
        grads = gradients(rank, SHAPES)
        aggregator.allreduce(grads)
        return grads

    results = ranks.values(world_size, act, url, shard_mb=0.01)

    expected = mean(world_size, SHAPES)
    for grads in results:
        for name, value in expected.items():
            np.testing.assert_allclose(grads[name], value, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(grads[name], results[0][name])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    world_size=st.integers(1, 5),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    weights=st.lists(st.integers(0, 50), min_size=5, max_size=5),
    shard_bytes=st.sampled_from([64, 1000, 4096, 1 << 22]),
    aggregators=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_weighted_means_of_any_world_and_layout(
    ranks, world_size, sizes, weights, shard_bytes, aggregators, seed
):
    shapes = {f"t{index}": (size,) for index, size in enumerate(sizes)}
    weights = weights[:world_size]

    def act(aggregator, rank):
        grads = gradients(rank, shapes, seed=seed)
        aggregator.allreduce(grads, weight=weights[rank])
        return grads

    results = ranks.values(
        world_size,
        act,
        f"memory://{ranks.job}",
        shard_mb=shard_bytes / (1 << 20),
        aggregators=min(aggregators, world_size),
    )

    if any(weights):
        expected = mean(world_size, shapes, weights, seed=seed)
    else:
        expected = {name: np.zeros(shape) for name, shape in shapes.items()}
    for grads in results:
        for name, value in expected.items():
            np.testing.assert_allclose(grads[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-15), (np.float16, 1e-3), (np.int64, 0.5), (np.uint8, 0.5)],
)
def test_other_dtypes_are_averaged_as_well_as_they_can_be(ranks, dtype, tolerance):
    def act(aggregator, rank):
        grads = gradients(rank, SHAPES, dtype)
        aggregator.allreduce(grads)
        return grads

    for grads in ranks.values(3, act, f"memory://{ranks.job}"):
        for name, value in mean(3, SHAPES, dtype=dtype).items():
            assert grads[name].dtype == dtype
            np.testing.assert_allclose(grads[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_the_largest_and_smallest_integers_stay_what_they_are(ranks, dtype):
    """float64, in which they are averaged, has no 2⁶³ - 1."""
    ends = [np.iinfo(dtype).min, np.iinfo(dtype).max]

    def act(aggregator, rank):
        grads = [np.array(ends, dtype), torch.from_numpy(np.array(ends, dtype))]
        aggregator.allreduce(grads)
        return [each.tolist() for each in grads]

    assert ranks.values(2, act, f"memory://{ranks.job}") == [[ends, ends]] * 2


def test_a_rank_of_no_weight_changes_nothing_even_with_infinite_gradients(ranks):
    def act(aggregator, rank):
        grads = [
            np.array([np.inf if rank else 3.0], np.float32),
            np.array([np.nan if rank else 5.0]),
        ]
        aggregator.allreduce(grads, weight=0 if rank else 8)
        return grads

    for narrow, wide in ranks.values(2, act, f"memory://{ranks.job}"):
        assert (narrow[0], wide[0]) == (3.0, 5.0)


def test_it_takes_whatever_shares_its_memory(ranks):
    def act(aggregator, rank):
        strided = np.full((4, 6), rank, np.float32)[:, ::2]
        tensors = [torch.full((3,), float(rank), dtype=d) for d in (torch.bfloat16, torch.float32)]
        parameter = torch.nn.Parameter(torch.full((2, 2), float(rank)))
        buffer = array.array("f", [rank] * 5)
        grads = (strided, *tensors, tensors[1].reshape(3, 1).t(), parameter, buffer)
        aggregator.allreduce(grads)
        return [np.asarray(grads[0]), *(t.detach().float().numpy() for t in grads[1:5]), buffer]

    for values in ranks.values(3, act, f"memory://{ranks.job}"):
        for value in values:
            assert np.unique(value).tolist() == [1.0]


def test_torch_s_lazy_views_and_tensors_to_be_resized_are_as_good_as_others(ranks):
    def act(aggregator, rank):
        grads = torch.full((3,), float(rank))
        turned = torch.full((3,), 1j * rank).conj()
        for values in (grads, turned.imag):
            aggregator.allreduce(values)
        gathered = aggregator.all_gather(turned)
        return grads.resize_(4)[:3].tolist(), turned.imag.tolist(), gathered.imag.tolist()

    mean, turned = [0.5] * 3, [-0.5] * 3
    for values in ranks.values(2, act, f"memory://{ranks.job}"):
        assert values == (mean, turned, [turned] * 2)


class OnlyDlpack:
    """Of another library: it shares its memory by DLPack and by nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_it_takes_dlpack_and_every_buffer(ranks):
    def act(aggregator, rank):
        inside = np.full((2, 3), rank, np.float32)
        wide = np.full(4, rank, np.float64)
        doubles = (ctypes.c_double * 3)(*[rank] * 3)
        octets = bytearray([10 * rank] * 5)
        room = mmap.mmap(-1, 16)
        view = memoryview(room).cast("f")
        view[0] = view[3] = rank
        backwards = memoryview(np.full(6, rank, np.int32))[::-2]
        grads = [OnlyDlpack(inside), OnlyDlpack(wide), doubles, octets, view, backwards]
        aggregator.allreduce(grads)
        aggregator.broadcast(OnlyDlpack(inside), root=1)
        gathered = aggregator.all_gather(OnlyDlpack(np.full(2, rank)))
        results = [*inside.flat, *wide, *doubles, view[0], view[3], *backwards]
        return results, list(octets), gathered.tolist()

    for values, octets, gathered in ranks.values(3, act, f"memory://{ranks.job}"):
        assert set(values) == {1.0}
        assert octets == [10] * 5
        assert gathered == [[0, 0], [1, 1], [2, 2]]


def test_numpy_s_numbers_are_numbers(ranks):
    def act(aggregator, rank):
        grads = np.full(3, rank, np.float32)
        aggregator.allreduce(grads, weight=np.float32(2))
        aggregator.broadcast(grads, root=np.int64(0))
        return grads[0]

    assert ranks.values(np.int64(1), act, f"memory://{ranks.job}", ranks=[np.int64(0)]) == [0.0]


def test_dicts_may_be_in_any_order(ranks):
    def act(aggregator, rank):
        names = ["a", "b", "c"][:: 1 - 2 * rank]
        grads = {name: np.full(3, ord(name) + rank, np.float32) for name in names}
        aggregator.allreduce(grads)
        return {name: value[0] for name, value in grads.items()}

    for means in ranks.values(2, act, f"memory://{ranks.job}"):
        assert means == {"a": 97.5, "b": 98.5, "c": 99.5}


def test_reductions_overlap_and_keep_apart(ranks, url):
    def act(aggregator, rank):
        every = [np.full(1000 * (i + 1), i * (rank + 1), np.float32) for i in range(12)]
        futures = [aggregator.allreduce_async(grads) for grads in every]
        for future in futures:
            future.result(20)
        return [grads[0] for grads in every], [np.ptp(grads) for grads in every]

    for means, spreads in ranks.values(3, act, url, shard_mb=0.002):
        assert means == [2.0 * i for i in range(12)]
        assert not any(spreads)


def test_leaving_waits_for_what_was_begun(ranks, url):
    begun = []

    def act(aggregator, rank):
        grads = [np.full(1000, rank + i, np.float32) for i in range(5)]
        begun.extend((aggregator.allreduce_async(each), each, i) for i, each in enumerate(grads))

    ranks.values(2, act, url)
    assert len(begun) == 10
    for future, values, i in begun:
        assert future.result(0) is None
        assert np.unique(values).tolist() == [0.5 + i]


def test_the_other_collectives(ranks, url):
    def act(aggregator, rank):
        weights = {"w": np.full(5, rank, np.int16), "b": torch.full((2,), rank, dtype=torch.bool)}
        aggregator.broadcast(weights, root=1)
        aggregator.broadcast([])
        gathered = aggregator.all_gather(np.arange(3) + rank)
        tensors = aggregator.all_gather(torch.full((2,), rank, dtype=torch.bfloat16))
        part = aggregator.reduce_scatter(np.arange(8.0, dtype=np.float32) * rank)
        aggregator.barrier()
        return weights, gathered, tensors, part

    results = ranks.values(3, act, url)

    for weights, gathered, tensors, _ in results:
        assert weights["w"].tolist() == [1] * 5
        assert weights["b"].tolist() == [True, True]
        assert gathered.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
        assert tensors.tolist() == [[0, 0], [1, 1], [2, 2]]
        assert tensors.dtype == torch.bfloat16
    parts = np.concatenate([part for *_, part in results])
    np.testing.assert_array_equal(parts, np.arange(8.0))


def test_a_barrier_holds_until_the_last_has_come(ranks):
    arrived = []

    def act(aggregator, rank):
        if rank == 2:
            release.wait(10)
        arrived.append(rank)
        aggregator.barrier()
        return len(arrived)

    release = threading.Event()
    threading.Timer(0.2, release.set).start()
    assert ranks.values(3, act, f"memory://{ranks.job}") == [3, 3, 3]


def test_nothing_stays_in_the_store(ranks, valkey):
    def act(aggregator, rank):
        for _ in range(5):
            aggregator.allreduce([np.ones(10_000, np.float32), np.ones(10_000)])
            aggregator.broadcast(np.ones(100_000))
        aggregator.barrier()

    ranks.values(2, act, valkey.url)  # a server that is new keeps some memory for itself
    with valkey.client() as admin:
        before = admin.info("memory")["used_memory"]
        ranks.values(2, act, valkey.url)
        left = [key for key in admin.keys("*") if ranks.job.encode() in key]
        # Numbers of the session, by which a slow process learns that it is over.
        assert all(b":sessions}" in key for key in left)
        # The server takes a moment to notice that connections are closed, whose buffers count.
        give_up = time.monotonic() + 20
        while admin.info("memory")["used_memory"] >= before + 200_000:
            assert time.monotonic() < give_up, admin.info("memory")
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"a": None}, "grads\\['a'\\] is None on this rank: pass zeros"),
        ({1: np.zeros(1)}, "keys that are no strings"),
        (["text"], "grads\\['0'\\] is a str: pass NumPy arrays"),
        ([np.zeros(2, bool)], "is of bool, which has no average"),
        ([np.zeros(2, complex)], "is of complex128, which has no average"),
        ([bytes(4)], "cannot be written to"),
        ([torch.zeros(2, 2).to_sparse()], "sparse_coo tensor: pass a dense one"),
        ([torch.zeros(2, device="meta")], "meta device, which holds no numbers"),
        ([torch.zeros(1).expand(3)], "cannot be written to"),
        ([np.zeros(2, ">f4")], "not numbers in this machine's byte order"),
        ({"a": {"b": np.zeros(1)}}, "grads\\['a'\\] is a dict: pass NumPy arrays"),
        (np.float32(1), "cannot be written to"),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_a_sentence(ranks, bad, sentence):
    def act(aggregator, rank):
        aggregator.allreduce(bad)

    with pytest.raises(UserError, match=sentence):
        ranks.values(1, act, f"memory://{ranks.job}")


def test_an_array_that_cannot_be_read_ends_the_job_for_all(ranks, monkeypatch):
    read = NumpyItem.read

    def fail_on_the_second(self, out):
        if self.name == "grads['1']" and self.array[0] == 1:
            raise OSError("the disk behind it is gone")
        read(self, out)

    monkeypatch.setattr(NumpyItem, "read", fail_on_the_second)

    def act(aggregator, rank):
        aggregator.allreduce([np.full(3000, rank, np.float32), np.full(3000, rank, np.float32)])

    for error in ranks.run(2, act, f"memory://{ranks.job}", shard_mb=0.01, limit_s=20):
        assert isinstance(error, UserError)
        assert "cannot be read: OSError the disk behind it is gone" in str(error)


WEIGHTLESS = [1e-40, -1.0, float("nan"), float("inf"), 1e300, "8", None, 1j, True]


@pytest.mark.parametrize("weight", WEIGHTLESS)
def test_a_weight_is_a_number_of_samples(ranks, weight):
    def act(aggregator, rank):
        aggregator.allreduce(np.ones(3, np.float32), weight=weight)

    with pytest.raises(UserError, match="is no weight"):
        ranks.values(1, act, f"memory://{ranks.job}")
