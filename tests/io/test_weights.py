"""Weights that other tools read, and files of other tools that we read."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from smlt.errors import CheckpointError, NotFoundError, StoreError
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.tensor import NUMPY_DTYPES, Tensor
from smlt.io.weights import (
    pack_weights,
    read_weights,
    read_weights_file,
    replace_weights,
    save_weights,
    unpack_weights,
    write_weights_file,
)

METADATA = {"epoch": "3", "note": "größer"}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = [kind for name, kind in NUMPY_DTYPES.items() if name != "C128"]
    made = {
        f"layer.{i}": rng.integers(0, 2, (i % 3 + 1, 5)).astype(kind)
        for i, kind in enumerate(kinds)
    }
    return made | {"scalar": np.array(2.5, np.float32), "empty": np.empty((0, 3), np.float64)}


def test_the_library_reads_what_we_write(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights_file(path, arrays(), METADATA)
    found = safetensors.numpy.load_file(path)
    assert sorted(found) == sorted(arrays())
    for name, array in arrays().items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[name], array)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == METADATA
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_we_read_what_the_library_writes(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays(), path, METADATA)
    found = read_weights_file(path)
    assert list(found) == sorted(arrays())
    for name, array in arrays().items():
        assert np.array_equal(found[name].numpy(), array)


def test_bfloat16_goes_through_torch():
    tensor = torch.randn(3, 5).to(torch.bfloat16)
    ours = Tensor("BF16", (3, 5), tensor.view(torch.uint8).reshape(-1).numpy())
    data = b"".join(pack_weights({"w": ours}))
    assert torch.equal(safetensors.torch.load(data)["w"], tensor)
    back = unpack_weights(safetensors.torch.save({"w": tensor}), "it")["w"]
    assert (back.dtype, back.shape, back.data.tobytes()) == ("BF16", (3, 5), ours.data.tobytes())


def test_weights_go_through_a_store():
    async def scenario():
        store = MemoryObjectStore("weights")
        await save_weights(store, "jobs/a/model.safetensors", arrays(), METADATA)
        found = await read_weights(store, "jobs/a/model.safetensors")
        assert np.array_equal(found["scalar"].numpy(), arrays()["scalar"])
        with pytest.raises(NotFoundError):
            await read_weights(store, "none")

    asyncio.run(scenario())
    forget("weights")


def test_the_same_weights_are_the_same_bytes():
    one = b"".join(pack_weights(arrays(), METADATA))
    reverse = dict(reversed(arrays().items()))
    assert b"".join(pack_weights(reverse, dict(reversed(METADATA.items())))) == one


def test_complex128_is_refused():
    with pytest.raises(CheckpointError, match="z is complex128"):
        pack_weights({"z": np.zeros(1, np.complex128)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a model",
        lambda data: data[:50],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data.replace(b'"F32"', b'"F33"'),
        lambda data: data.replace(b"[1,5]", b"[1,6]"),
        lambda data: data.replace(b"[1,5]", b"[-1,-5]"[:5]),
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" * 200 + data[208:],
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(b"".join(pack_weights(arrays()))))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_weights_file(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_weights_file(tmp_path / "none")
    with pytest.raises(StoreError, match="cannot write"):
        write_weights_file(tmp_path / "none" / "x", arrays())


def put_in_turn(*generations, between=None):
    """Return whose weights are kept where these put theirs; ``between`` comes in the middle."""

    class Store(MemoryObjectStore):
        async def put(self, key, data, **condition):
            if self.intruder is not None:
                self.intruder, intruder = None, self.intruder
                await replace_weights(self, key, weights(intruder), generation=intruder)
            return await super().put(key, data, **condition)

    def weights(generation):
        return {"of": np.full(3, generation, np.int64)}

    async def scenario():
        async with Store("in-turn") as store:
            for generation in generations:
                store.intruder = between if generation == generations[-1] else None
                await replace_weights(store, "best", weights(generation), generation=generation)
            return (await read_weights(store, "best"))["of"].data.view(np.int64)[0]

    try:
        return asyncio.run(scenario())
    finally:
        forget("in-turn")


def test_weights_of_a_later_generation_stay():
    assert put_in_turn(1) == 1
    assert put_in_turn(1, 1, 2) == 2
    assert put_in_turn(2, 1) == 2


@pytest.mark.parametrize("others", [(), (1,)])
def test_the_later_of_two_that_put_weights_at_once_wins(others):
    assert put_in_turn(*others, 3, between=2) == 3
    assert put_in_turn(*others, 2, between=3) == 3


def test_damaged_weights_are_replaced():
    async def scenario():
        async with MemoryObjectStore("damaged-best") as store:
            await store.put("best", b"\xff" * 40)
            await replace_weights(store, "best", arrays(), generation=1)
            return await read_weights(store, "best")

    assert set(asyncio.run(scenario())) == set(arrays())
