"""Checkpoints are the same bytes whoever writes them, and are never read damaged."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from smlt.errors import CheckpointError
from smlt.io import checkpoint
from smlt.io.checkpoint import CheckpointWriter
from smlt.io.directory import DirectoryStore
from smlt.io.keys import JobObjects
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.state_digest import LEAF_BYTES, StateLayout, state_digest, weights_digest
from smlt.io.tensor import Tensor
from smlt.messages.job import Position

AT = Position(generation=3, step=41)
SCALARS = {"lr": 0.1, "best": math.inf, "betas": (0.9, 0.999), "seen": {"$float": "a key"}}


@pytest.fixture
def store(tmp_path):
    return DirectoryStore(tmp_path / "store")


def some_state(seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    big = rng.standard_normal(3 * LEAF_BYTES // 4 + 1000).astype(np.float32)
    half = rng.integers(0, 1 << 16, 77, dtype=np.uint16)
    return {
        "weight": Tensor("F32", (len(big),), big.view(np.uint8)),
        "odd": Tensor("U8", (3,), np.array([1, 2, 3], np.uint8)),
        "half": Tensor("BF16", (7, 11), half.view(np.uint8)),
        "none": Tensor("F64", (0, 4), np.empty(0, np.uint8)),
        "step": Tensor("I64", (), np.array([41]).view(np.uint8)),
        "flag": Tensor("BOOL", (2,), np.array([1, 0], np.uint8)),
    }


def writer(store, tensors=None, *, parts, at=AT, scalars=None) -> CheckpointWriter:
    tensors = some_state() if tensors is None else tensors
    return CheckpointWriter(store, "job", at, tensors, scalars or SCALARS, parts=parts)


async def save(store, *, parts, at=AT, tensors=None, parent=None, info=None) -> bool:
    saving = writer(store, tensors, parts=parts, at=at)
    for part in range(parts):
        await saving.write_part(part)
    return await saving.commit(parent=parent, info=info or {})


def assert_same(read: dict[str, Tensor], written: dict[str, Tensor]) -> None:
    assert list(read) == sorted(written)
    for name, tensor in written.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].data.tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_read_returns_what_was_saved_in_any_number_of_parts(store, parts):
    async def scenario():
        parent = Position(generation=2, step=40)
        assert await save(store, parts=parts, parent=parent, info={"threads": 2})
        found = await checkpoint.read(store, "job", AT)
        assert_same(found.tensors, some_state())
        assert found.manifest.scalars == SCALARS
        assert (found.manifest.position, found.manifest.parent) == (AT, parent)
        assert found.manifest.info == {"threads": 2}
        assert found.manifest.digest == state_digest(some_state(), SCALARS)

    asyncio.run(scenario())


def test_manifest_is_strict_json(store):
    async def scenario():
        await save(store, parts=2)
        text, _ = await store.get(JobObjects("job").manifest(3, 41))
        document = json.loads(text, parse_constant=pytest.fail)
        assert document["scalars"]["best"] == {"$float": "inf"}

    asyncio.run(scenario())


def test_parts_are_safetensors_files_of_slices(store):
    async def scenario():
        await save(store, parts=2)
        joined = b""
        for part in range(2):
            path = store.local_path(JobObjects("job").part(3, 41, part))
            entries = dict(safetensors.deserialize(path.read_bytes()))
            joined += b"".join(bytes(entries[name]["data"]) for name in sorted(entries))
        tensors = some_state()
        assert joined == b"".join(tensors[name].data.tobytes() for name in sorted(tensors))

    asyncio.run(scenario())


def test_any_rank_writes_the_same_part(tmp_path):
    async def scenario():
        stores = [DirectoryStore(tmp_path / name) for name in "ab"]
        infos = [await writer(store, parts=4).write_part(2) for store in stores]
        assert infos[0] == infos[1]
        contents = [await store.get(infos[0].key) for store in stores]
        assert contents[0] == contents[1]

    asyncio.run(scenario())


def test_missing_parts_are_written_by_another_and_the_second_commit_loses(store):
    async def scenario():
        first, second = writer(store, parts=3), writer(store, parts=3)
        await first.write_part(1)
        assert await second.missing_parts() == [0, 2]
        with pytest.raises(CheckpointError, match=r"part-0000[02].*is missing"):
            await second.commit(parent=None, info={})
        assert await checkpoint.newest(store, "job", 3) is None
        for part in await second.missing_parts():
            await second.write_part(part)
        assert await second.missing_parts() == []
        assert [await w.commit(parent=None, info={}) for w in (first, second)] == [True, False]
        assert_same((await checkpoint.read(store, "job", AT)).tensors, some_state())

    asyncio.run(scenario())


def test_a_part_of_another_layout_is_not_committed(store):
    async def scenario():
        await writer(store, {"x": np.zeros(9, np.float32)}, parts=2).write_part(0)
        saving = writer(store, {"x": np.zeros(8, np.float64)}, parts=2)
        await saving.write_part(1)
        with pytest.raises(CheckpointError, match="part-00000"):
            await saving.commit(parent=None, info={})

    asyncio.run(scenario())


def test_newest_is_the_highest_committed_step_of_the_generation(store):
    async def scenario():
        for step in (7, 100, 20):
            await save(store, parts=1, at=Position(generation=3, step=step))
        await save(store, parts=1, at=Position(generation=4, step=500))
        await writer(store, parts=1, at=Position(generation=3, step=900)).write_part(0)
        assert await checkpoint.newest(store, "job", 3) == Position(generation=3, step=100)
        assert await checkpoint.newest(store, "job", 5) is None
        assert await checkpoint.newest(store, "other", 3) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["flip in header", "flip in tensors", "cut", "longer", "gone"])
def test_a_damaged_part_is_named(store, damage):
    async def scenario():
        await save(store, parts=2)
        path = store.local_path(JobObjects("job").part(3, 41, 1))
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        else:
            data[{"flip in header": 30, "flip in tensors": -5}.get(damage, 0)] ^= 1 + ord("d")
            data = {"cut": data[:-1], "longer": data + b"x"}.get(damage, data)
            path.write_bytes(data)
        with pytest.raises(CheckpointError, match="part-00001"):
            await checkpoint.read(store, "job", AT)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is a checkpoint of version 2, and this smlt reads version 1"),
        ({"format": "something"}, "version None"),
        ({"scalars": {"lr": 0.2}, "checksum": None}, "digest is not that of its tensors"),
        ({"info": {"trained": 40}}, "its checksum is another one"),
        ({"step": 40}, "its checksum is another one"),
        ({"parts": []}, "is damaged"),
        ({"tensors": 5}, "is damaged"),
    ],
)
def test_a_changed_manifest_is_refused(store, change, message):
    async def scenario():
        await save(store, parts=2)
        key = JobObjects("job").manifest(3, 41)
        text, _ = await store.get(key)
        await store.put(key, json.dumps(json.loads(text) | change).encode())
        with pytest.raises(CheckpointError, match=message) as error:
            await checkpoint.read(store, "job", AT)
        assert key in str(error.value)

    asyncio.run(scenario())


def test_no_checkpoint_is_said_so(store):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        asyncio.run(checkpoint.read(store, "job", AT))


def test_a_scalar_that_is_no_json_is_named(store):
    saving = writer(store, parts=1, scalars={"sched": [{"seen": {1, 2}}]})

    async def scenario():
        await saving.write_part(0)
        with pytest.raises(CheckpointError, match=r"it\['sched'\]\[0\]\['seen'\] is a set"):
            await saving.commit(parent=None, info={})

    asyncio.run(scenario())


def test_prune_keeps_the_last_and_the_protected(store):
    async def scenario():
        places = [(1, 10), (1, 20), (2, 15), (2, 30), (3, 31)]
        positions = [Position(generation=g, step=s) for g, s in places]
        for position in positions:
            await save(store, parts=2, at=position)
        await writer(store, parts=2, at=Position(generation=1, step=25)).write_part(0)
        await writer(store, parts=2, at=Position(generation=3, step=40)).write_part(0)
        await checkpoint.prune(store, "job", keep=2, protect=[positions[0]])
        left = {info.key.rpartition("/")[0] async for info in store.list("jobs/job/checkpoints/")}
        assert sorted(name.removeprefix("jobs/job/checkpoints/") for name in left) == [
            "000001/000000010",
            "000002/000000030",
            "000003/000000031",
            "000003/000000040",
        ]
        await checkpoint.read(store, "job", positions[0])

    asyncio.run(scenario())


def test_digest_is_what_its_definition_says():
    tensors = {"b": np.arange(300_000, dtype=np.float32), "a": np.array(7, np.int64)}
    data = tensors["b"].tobytes()
    leaves = [hashlib.sha256(data[i : i + 1048576]).hexdigest() for i in (0, 1048576)]
    lines = [
        '["a","I64",[]]',
        hashlib.sha256(tensors["a"].tobytes()).hexdigest(),
        '["b","F32",[300000]]',
        *leaves,
        "{}",
    ]
    expected = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert weights_digest(tensors) == f"sha256:{expected}"


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"b": np.zeros(4, np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
    ],
)
def test_digest_tells_dtype_shape_name_and_bits_apart(other):
    assert weights_digest(other) != weights_digest({"a": np.zeros(4, np.float32)})


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3 * LEAF_BYTES), max_size=6),
    parts=st.integers(1, 20),
)
def test_parts_cover_the_state_once_and_are_balanced(sizes, parts):
    data = np.zeros(max(sizes, default=0), np.uint8)
    layout = StateLayout.of(
        {f"t{i}": Tensor("U8", (size,), data[:size]) for i, size in enumerate(sizes)}
    )
    cut = [layout.part(i, parts) for i in range(parts)]
    assert [leaf for part in cut for leaf in part] == list(layout.leaves)
    for part in cut:
        held = sum(leaf.stop - leaf.start for leaf in part)
        assert abs(held - sum(sizes) / parts) <= LEAF_BYTES


def test_a_store_in_memory_serves_too():
    async def scenario():
        await save(MemoryObjectStore("checkpoints"), parts=3)
        found = await checkpoint.read(MemoryObjectStore("checkpoints"), "job", AT)
        assert_same(found.tensors, some_state())

    asyncio.run(scenario())
    forget("checkpoints")
