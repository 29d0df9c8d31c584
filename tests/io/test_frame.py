"""Frames carry a shard and its header, and a hostile one gives a FrameError."""

from __future__ import annotations

import math

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt._core import codec
from smlt.errors import FrameError
from smlt.io.frame import (
    Meta,
    ShardHeader,
    decode_shard_add,
    decode_shard_into,
    encode_shard,
)

HEADER = ShardHeader(5, 32.5, Meta(b"\x0f\x01", {"loss": (1.5, 32.0), "nan": (math.inf, 0.0)}))


def joined(shard: np.ndarray, header: ShardHeader = HEADER) -> bytes:
    return b"".join(encode_shard(shard, header))


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_values_and_header_arrive_as_they_were(size):
    shard = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    out = np.full(size, np.nan, np.float32)
    assert decode_shard_into(joined(shard), out) == HEADER
    assert out.tobytes() == shard.tobytes()


def test_dense_values_are_sent_from_where_they_are():
    shard = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    pieces = encode_shard(shard, HEADER)
    shared = [p for p in pieces if np.shares_memory(np.frombuffer(p, np.uint8), shard)]
    assert sum(memoryview(piece).nbytes for piece in shared) == shard.nbytes


def test_add_scales_and_adds():
    shard = np.arange(100, dtype=np.float32)
    out = np.ones(100, np.float32)
    assert decode_shard_add(joined(shard), out, scale=0.5) == HEADER
    assert np.array_equal(out, 1 + shard / 2)


def test_no_meta_takes_no_bytes():
    header = ShardHeader(0, 1.0, Meta())
    frame = joined(np.empty(0, np.float32), header)
    assert codec.read_header(frame).meta == b""
    assert decode_shard_into(frame, np.empty(0, np.float32)) == header


@given(st.data())
def test_a_flipped_bit_is_found(data):
    frame = bytearray(joined(np.arange(50, dtype=np.float32)))
    at = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[at // 8] ^= 1 << at % 8
    with pytest.raises(FrameError):
        decode_shard_into(frame, np.empty(50, np.float32))


@pytest.mark.parametrize("size", [49, 51])
def test_another_number_of_values_is_refused(size):
    with pytest.raises(FrameError):
        decode_shard_into(joined(np.zeros(50, np.float32)), np.empty(size, np.float32))


@pytest.mark.parametrize("frame", [b"", b"x", bytes(1000)])
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(FrameError):
        decode_shard_into(frame, np.empty(5, np.float32))


@pytest.mark.parametrize(
    "meta",
    [
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({"p": b""}),
        msgpack.packb({"p": "text", "m": {}}),
        msgpack.packb({"p": b"", "m": {"loss": [1.0]}}),
        msgpack.packb({"p": b"", "m": {"loss": [1.0, "x"]}}),
        msgpack.packb({"p": b"", "m": {7: [1.0, 2.0]}}),
        msgpack.packb({"p": b"", "m": msgpack.ExtType(3, b"x")}),
        msgpack.packb({"p": b"", "m": {f"m{i}": [1.0, 1.0] for i in range(1001)}}),
        msgpack.packb({"p": b"", "m": {}}) + b"more",
        b"\x81" * 5000,
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_metadata_of_another_shape_is_refused(meta):
    frame = b"".join(codec.encode(np.zeros(3, np.float32), meta=meta))
    with pytest.raises(FrameError):
        decode_shard_into(frame, np.empty(3, np.float32))
