"""One strange argument at a time: one clear sentence, and the same from kernels and twins."""

import re

import numpy as np
import pytest

from smlt import _core
from smlt._core._reference import codec as twin_codec
from smlt._core._reference import shard_reduce as twin_shard_reduce

COUNT = 24
FLOATS = np.linspace(-1, 1, COUNT, dtype=np.float32)
FRAME = b"".join(_core.codec.encode(FLOATS))
HALF_FRAME = b"".join(_core.codec.encode(FLOATS, wire_dtype="fp16"))

VIEW = memoryview(FLOATS.tobytes()).cast("f")


def floats():
    return FLOATS.copy()


def shards():
    return [floats(), 2 * floats(), 3 * floats()]


# How to call each door; every value is made anew for each call.
REDUCE = {
    "dtype": lambda: "fp32",
    "weights": lambda: [1.0, 2.0, 3.0],
    "scale": lambda: 0.5,
    "order": lambda: "tree",
    "threads": lambda: 1,
}
DOORS = {
    "shard_reduce.reduce": {"shards": shards, "out": floats, **REDUCE},
    "shard_reduce.reduce_cast": {
        "shards": shards,
        "out": lambda: np.zeros(COUNT, np.uint16),
        "wire_dtype": lambda: "bf16",
        "residual": floats,
        **REDUCE,
    },
    "shard_reduce.reduce_sgd": {
        "shards": shards,
        "param": floats,
        "momentum_buffer": floats,
        "lr": lambda: 0.1,
        "momentum": lambda: 0.9,
        "dampening": lambda: 0.0,
        "weight_decay": lambda: 0.01,
        **REDUCE,
    },
    "shard_reduce.reduce_adamw": {
        "shards": shards,
        "param": floats,
        "exp_avg": floats,
        "exp_avg_sq": lambda: np.square(floats()),
        "step": lambda: 3,
        "lr": lambda: 0.1,
        "betas": lambda: (0.9, 0.99),
        "eps": lambda: 1e-8,
        "weight_decay": lambda: 0.01,
        **REDUCE,
    },
    "shard_reduce.StreamReducer": {"count": lambda: COUNT, "world_size": lambda: 3, **REDUCE},
    "codec.FrameReducer": {"count": lambda: COUNT, "world_size": lambda: 3, **REDUCE},
    "codec.checksum": {"data": floats},
    "codec.frame_bound": {"nbytes": lambda: 100, "meta_bytes": lambda: 3},
    "codec.encode": {
        "array": floats,
        "wire_dtype": lambda: "fp16",
        "flags": lambda: 3,
        "weight": lambda: 2.5,
        "meta": lambda: b"meta",
        "residual": floats,
    },
    "codec.encode_into": {
        "array": floats,
        "out": lambda: bytearray(2000),
        "wire_dtype": lambda: "fp16",
        "flags": lambda: 3,
        "weight": lambda: 2.5,
        "meta": lambda: b"meta",
        "residual": floats,
    },
    "codec.encode_tensors": {
        "tensors": lambda: {"a": floats(), "b": np.zeros(COUNT, np.uint16)},
        "bf16": lambda: {"b"},
        "flags": lambda: 3,
        "weight": lambda: 2.5,
        "meta": lambda: b"meta",
    },
    "codec.read_header": {"frame": lambda: FRAME, "max_bytes": lambda: 4 * COUNT},
    "codec.verify": {"frame": lambda: FRAME, "max_bytes": lambda: 4 * COUNT},
    "codec.decode_into": {"frame": lambda: FRAME, "out": floats, "threads": lambda: 1},
    "codec.decode_add": {
        "frame": lambda: HALF_FRAME,
        "out": floats,
        "scale": lambda: 0.5,
        "threads": lambda: 1,
    },
    "codec.decode_tensors": {
        "frame": lambda: FRAME,
        "max_bytes": lambda: 4 * COUNT,
        "threads": lambda: 1,
    },
    "codec.decode_reduce": {
        "frames": lambda: [FRAME, FRAME, FRAME],
        "out": floats,
        **{name: value for name, value in REDUCE.items() if name != "dtype"},
    },
}
del DOORS["shard_reduce.StreamReducer"]["scale"], DOORS["codec.FrameReducer"]["scale"]


def read_only():
    array = floats()
    array.flags.writeable = False
    return array


STRANGE = {
    "None": lambda: None,
    "-1": lambda: -1,
    "0": lambda: 0,
    "7": lambda: 7,
    "True": lambda: True,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "-inf": lambda: float("-inf"),
    "complex": lambda: 1j,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "np.int64": lambda: np.int64(2),
    "np.float32": lambda: np.float32(0.25),
    "text": lambda: "fp64",
    "number as text": lambda: "1",
    "lone surrogate": lambda: "\ud800",
    "bytes": lambda: b"ab",
    "as many bytes": lambda: bytes(4 * COUNT),
    "bytearray": lambda: bytearray(3),
    "empty list": list,
    "numbers": lambda: [1.0, 2.0],
    "texts": lambda: ["1", "2", "3"],
    "list of None": lambda: [None] * 3,
    "a dict": lambda: {"a": 1},
    "name of a surrogate": lambda: {"\ud800": floats()},
    "a number as name": lambda: {1: floats()},
    "names": lambda: {"a", "missing"},
    "iterator": lambda: iter(shards()),
    "0-d": lambda: np.array(1.0, np.float32),
    "empty": lambda: np.zeros(0, np.float32),
    "shorter": lambda: floats()[:-1],
    "two-dimensional": lambda: floats().reshape(4, 6),
    "doubles": lambda: FLOATS.astype(np.float64),
    "halves": lambda: FLOATS.astype(np.float16),
    "words": lambda: np.zeros(COUNT, np.uint16),
    "big-endian": lambda: FLOATS.astype(">f4"),
    "every other": lambda: np.zeros(2 * COUNT, np.float32)[::2],
    "read-only": read_only,
    "read-only view": lambda: VIEW,  # one, for its address is part of what it is written as
    "objects": lambda: np.full(COUNT, None),
    "damaged frame": lambda: FRAME[:-1],
    "list of frames and not": lambda: [FRAME, b"", FRAME],
    "shards of two dtypes": lambda: [floats(), FLOATS.astype(np.float16), floats()],
}


def outcome(codec, shard_reduce, door, name, value):
    """Return what a call gave, and what it left in its arguments; or its error's type and text."""
    module, function = door.split(".")
    given = {key: make() for key, make in DOORS[door].items()}
    given[name] = STRANGE[value]()
    call = getattr({"codec": codec, "shard_reduce": shard_reduce}[module], function)
    try:
        result = call(**given)
    except Exception as exc:
        return type(exc).__name__, re.sub("x[0-9a-f]+>", "", str(exc))
    if function.endswith("Reducer"):
        result = result.missing
    elif function == "encode_into":
        result = codec.decode_tensors(given.pop("out")[:result], max_bytes=10**6)
    elif function in ("encode", "encode_tensors"):
        result = codec.decode_tensors(b"".join(result), max_bytes=10**6)
    return repr(result), {key: repr(array) for key, array in given.items() if key != "shards"}


@pytest.mark.parametrize("door", sorted(DOORS))
def test_kernels_and_twins_say_the_same_of_a_strange_argument(door):
    for name in DOORS[door]:
        for value in STRANGE:
            ours = outcome(_core.codec, _core.shard_reduce, door, name, value)

            assert ours == outcome(twin_codec, twin_shard_reduce, door, name, value), (name, value)
            if isinstance(ours[1], str):
                assert ours[0] in ("TypeError", "ValueError", "BufferError", "FrameFormatError")
                assert "\n" not in ours[1]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda c: c.decode_into(FRAME, floats(), threads=0),
            ValueError,
            "threads must be at least 1, not 0",
        ),
        (
            lambda c: c.decode_add(FRAME, floats(), threads=-3),
            ValueError,
            "threads must be at least 1, not -3",
        ),
        (
            lambda c: c.decode_tensors(FRAME, max_bytes=96, threads=1.5),
            TypeError,
            "threads must be an integer, not 1.5",
        ),
        (
            lambda c: c.encode(FLOATS, flags=1.5),
            TypeError,
            "flags must be an integer, not 1.5",
        ),
        (
            lambda c: c.encode(FLOATS, wire_dtype="fp16", residual=[0.0]),
            TypeError,
            "residual is a list, which has no buffer",
        ),
        (
            lambda c: c.encode_tensors([FLOATS]),
            TypeError,
            "tensors must map names to arrays, not be a list",
        ),
        (
            lambda c: c.encode_tensors({"\ud800": FLOATS}),
            ValueError,
            "the tensor's name '\\ud800' cannot be written as UTF-8",
        ),
        (
            lambda c: c.encode_tensors({"w": np.zeros(2, "u2")}, bf16="weight"),
            TypeError,
            "bf16 must be a collection of names, not 'weight'",
        ),
        (
            lambda c: c.encode_into(FLOATS, bytes(2000)),
            BufferError,
            "out must be writable and C-contiguous memory",
        ),
        (
            lambda c: c.read_header(FRAME, max_bytes=-1),
            ValueError,
            "max_bytes must be at least 0, not -1",
        ),
        (lambda c: c.read_header([1]), TypeError, "a frame is a list, which has no buffer"),
    ],
)
def test_codec_refuses_in_one_sentence(codec, call, error, text):
    with pytest.raises(error) as info:
        call(codec)

    assert str(info.value) == text


def test_memory_may_not_be_read_and_written_at_once(codec, rng):
    array = rng.standard_normal(1000, dtype=np.float32)
    room = np.zeros(6000, np.uint8)
    room[:4000] = array.view(np.uint8)
    with pytest.raises(ValueError, match="the array and out overlap"):
        codec.encode_into(room[:4000].view(np.float32), room[100:])

    size = codec.encode_into(array, room)
    inside = room[size - 4000 : size].view(np.float32)
    with pytest.raises(ValueError, match="a frame and out overlap"):
        codec.decode_into(room[:size], inside)
    with pytest.raises(ValueError, match="a frame and out overlap"):
        codec.decode_add(room[:size], inside)
    with pytest.raises(ValueError, match="a frame and out overlap"):
        codec.decode_reduce([room[:size]], inside)


def test_a_stream_refuses_memory_that_out_overlaps(shard_reduce):
    room = np.ones(12, np.float32)
    stream = shard_reduce.StreamReducer(8, 1)
    stream.add(0, room[:8])

    with pytest.raises(ValueError, match="shard 0 and out overlap"):
        stream.finish(room[2:10])

    stream.finish(room[:8], 2.0)
    assert room.tolist() == [2.0] * 8 + [1.0] * 4


def test_a_stream_keeps_to_the_dtype_of_its_first_shard(shard_reduce):
    stream = shard_reduce.StreamReducer(4, 2)
    stream.add(0, np.ones(4, np.float32))

    with pytest.raises(TypeError, match="fp32 was expected"):
        stream.add(1, np.ones(4, np.float16))

    assert stream.missing == [1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -0.1}, "lr must not be negative"),
        ({"lr": float("nan")}, "lr must not be negative"),
        ({"lr": 0.1, "nesterov": True}, "nesterov needs momentum"),
        ({"lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "no dampening"),
    ],
)
def test_sgd_refuses_what_torch_refuses(shard_reduce, options, text):
    with pytest.raises(ValueError, match=text):
        shard_reduce.reduce_sgd([FLOATS], floats(), floats(), **options)


@pytest.mark.parametrize("betas", [(1.0, 0.999), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_adamw_refuses_betas_that_divide_by_zero(shard_reduce, betas):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        shard_reduce.reduce_adamw([FLOATS], floats(), floats(), floats(), step=1, betas=betas)
