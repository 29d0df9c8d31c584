import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from smlt import _core
from smlt._core._reference import codec as twin
from tests.core.oracles import (
    bf16_bits,
    expected,
    from_bf16,
    normal_shards,
    same_bits,
    sparse_array,
)


def joined(buffers):
    return b"".join(buffers)


def decoded(codec, frame, like):
    out = np.empty_like(like)
    codec.decode_into(frame, out)
    return out


DTYPES = [np.dtype(c) for c in "?bhilqBHILQefd"]

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40),
        elements=hnp.from_dtype(dtype, allow_nan=True, allow_subnormal=True),
        fill=st.just(0),
    )
)


@settings(max_examples=150, deadline=None)
@given(array=arrays, meta=st.binary(max_size=40), flags=st.integers(0, 2**32 - 1))
def test_round_trip_keeps_every_bit(array, meta, flags):
    for encoder, decoder in ((_core.codec, twin), (twin, _core.codec), (_core.codec, _core.codec)):
        frame = joined(encoder.encode(array, flags=flags, weight=-0.5, meta=meta))
        out = np.empty_like(array)
        header = decoder.decode_into(frame, out)

        assert same_bits(out, array)
        assert (header.flags, header.weight, header.meta) == (flags, -0.5, meta)
        assert header.shape == array.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int32, np.int8])
@pytest.mark.parametrize("density", [0, 0.001, 0.01, 0.05, 0.3, 0.5, 0.68, 0.9, 1])
@pytest.mark.parametrize("count", [0, 1, 63, 16_384, 16_385, 70_001])
def test_round_trip_at_every_density(codec, rng, dtype, density, count):
    array = (sparse_array(rng, count, density) * 100).astype(dtype)

    frame = joined(codec.encode(array))

    assert same_bits(decoded(codec, frame, array), array)
    codec.verify(frame)


def test_special_bits_survive(codec):
    bits = np.array(
        [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 1, 0x807FFFFF],
        np.uint32,
    )
    array = np.zeros(40_000, np.float32)
    array[::5000] = bits.view(np.float32)

    assert same_bits(decoded(codec, joined(codec.encode(array)), array), array)


def test_repeats_are_compressed(codec):
    array = np.tile(np.arange(1, 65, dtype=np.int64), 4000)

    frame = joined(codec.encode(array))

    assert len(frame) < array.nbytes / 20
    assert same_bits(decoded(codec, frame, array), array)


def test_zeros_vanish(codec):
    array = np.zeros(10_000_000, np.float32)

    assert len(joined(codec.encode(array))) < 12 * 611 + 400


@pytest.mark.parametrize(("density", "least"), [(0.5, 1.85), (0.05, 15), (0.01, 58), (0.001, 180)])
def test_sparse_data_shrinks_as_documented(codec, rng, density, least):
    array = sparse_array(rng, 1 << 20, density)

    assert array.nbytes / len(joined(codec.encode(array))) > least


def test_dense_data_is_not_copied(rng):
    if not _core.COMPILED:
        pytest.skip("the twin copies nothing either, but makes a buffer a chunk")
    array = rng.standard_normal(1_000_000, dtype=np.float32)

    _, payload = _core.codec.encode(array)

    assert np.shares_memory(np.frombuffer(payload, np.uint8), array)
    assert payload.nbytes == array.nbytes


def test_encode_into_writes_what_encode_lists(codec, rng):
    for array in (
        rng.standard_normal(100_001, dtype=np.float32),
        sparse_array(rng, 100_001, 0.1),
        np.tile(rng.standard_normal(16), 20_000),
        np.zeros((0, 3), np.int8),
    ):
        out = bytearray(codec.frame_bound(array.nbytes, 4))

        size = codec.encode_into(array, out, meta=b"meta")

        assert out[:size] == joined(codec.encode(array, meta=b"meta"))


def test_encode_into_refuses_a_small_buffer(codec):
    with pytest.raises(ValueError, match="the frame may need"):
        codec.encode_into(np.zeros(100, np.float32), bytearray(399))


def test_many_tensors_in_one_frame(codec, rng):
    tensors = {
        "weight": rng.standard_normal((64, 3, 7, 7)).astype(np.float32),
        "embedding": sparse_array(rng, 100_000, 0.02).reshape(1000, 100),
        "steps": np.array(7),
        "mask": rng.random(70_003) < 0.5,
        "empty": np.zeros((3, 0), np.float16),
        "brain": bf16_bits(rng.standard_normal(100, dtype=np.float32)),
        "names can be any text, like ß": np.arange(5, dtype=np.uint8),
    }

    frame = joined(codec.encode_tensors(tensors, bf16={"brain"}, flags=3))
    back = codec.decode_tensors(frame, max_bytes=10**6)

    assert list(back) == list(tensors)
    assert all(same_bits(back[name], tensors[name]) for name in tensors)
    header = codec.read_header(frame)
    assert [t.dtype for t in header.tensors][-2:] == ["bf16", "uint8"]
    assert header.flags == 3
    assert codec.decode_tensors(joined(codec.encode_tensors({})), max_bytes=0) == {}


@pytest.mark.parametrize("wire_dtype", ["fp16", "bf16"])
def test_lossy_wire_rounds_once_and_widens_back(codec, rng, wire_dtype):
    array = rng.standard_normal((100, 171), dtype=np.float32)
    residual = np.zeros_like(array)

    plain = decoded(codec, joined(codec.encode(array, wire_dtype=wire_dtype)), array)
    frame = joined(codec.encode(array, wire_dtype=wire_dtype, residual=residual))

    if wire_dtype == "fp16":
        assert same_bits(plain, array.astype(np.float16).astype(np.float32))
    else:
        assert np.abs(plain / array - 1).max() <= 2**-8
    assert codec.read_header(frame).dtype == wire_dtype
    assert same_bits(residual, array - plain)


def test_frames_may_be_any_bytes(codec, rng):
    array = rng.standard_normal(1000, dtype=np.float32)
    frame = joined(codec.encode(array))
    shifted = memoryview(b"xyz" + frame)[3:]

    for form in (bytearray(frame), memoryview(frame), np.frombuffer(frame, np.uint8), shifted):
        assert same_bits(decoded(codec, form, array), array)


def test_decode_add_adds(codec, rng):
    array = sparse_array(rng, 50_000, 0.1)
    start = rng.standard_normal(50_000, dtype=np.float32)
    for wire_dtype in (None, "fp16"):
        frame = joined(codec.encode(array, wire_dtype=wire_dtype))
        value = decoded(codec, frame, array)
        out = start.copy()
        codec.decode_add(frame, out)
        assert same_bits(out, start + value)
        codec.decode_add(frame, out, scale=0.5)
        assert same_bits(out, start + value + np.float32(0.5) * value)


@pytest.mark.parametrize("order", ["fold", "tree", "fp64"])
@pytest.mark.parametrize("world_size", [1, 2, 7, 9, 20])
@pytest.mark.parametrize("wire_dtype", ["fp32", "fp16", "bf16"])
def test_decode_reduce_is_decode_then_reduce(codec, rng, world_size, order, wire_dtype):
    weights = rng.random(world_size)
    shards = []
    for _ in range(world_size):
        shard = sparse_array(rng, 70_001, rng.choice([0.0, 0.05, 0.6, 1.0]))
        shard[20_000:40_000] = rng.choice([0.0, -0.0])  # zero chunks, and some that only seem so
        shards.append(shard)
    frames = [joined(codec.encode(shard, wire_dtype=wire_dtype)) for shard in shards]
    values = [decoded(codec, frame, shards[0]) for frame in frames]
    out = np.empty(70_001, np.float32)

    headers = codec.decode_reduce(frames, out, order=order, weights=weights, scale=0.3, threads=2)

    assert same_bits(out, expected(values, order, weights, 0.3))
    assert [header.dtype for header in headers] == [wire_dtype] * world_size
    codec.decode_reduce(frames, out, order=order, scale=-1.0)
    assert same_bits(out, expected(values, order, None, -1.0))


@pytest.mark.parametrize("order", ["fold", "tree", "fp64"])
def test_frame_reducer_gives_the_bits_of_decode_reduce(codec, rng, order):
    shards = [sparse_array(rng, 30_000, rng.choice([0.05, 1.0])) for _ in range(19)]
    frames = [bytearray(joined(codec.encode(shard, weight=i))) for i, shard in enumerate(shards)]
    want = expected(shards, order, None, 0.5)
    stream = codec.FrameReducer(30_000, 19, order=order)
    for _ in range(2):
        received = [bytearray(frame) for frame in frames]
        for index in rng.permutation(19):
            header, freed = stream.add(int(index), received[index])
            assert header.weight == index
            for done in freed:
                received[done][:] = bytes(len(received[done]))
        out = np.empty(30_000, np.float32)
        stream.finish(out, 0.5)
        assert same_bits(out, want)


def test_frame_reducer_takes_a_good_copy_after_a_bad_one(codec, rng):
    array = rng.standard_normal(1000, dtype=np.float32)
    frame = joined(codec.encode(array))
    bad = bytearray(frame)
    bad[-1] ^= 1
    stream = codec.FrameReducer(1000, 1)
    with pytest.raises(codec.FrameFormatError, match="checksum of chunk 0"):
        stream.add(0, bad)

    stream.add(0, frame)

    out = np.empty(1000, np.float32)
    stream.finish(out)
    assert same_bits(out, array)


def test_threads_do_not_change_frames(rng):
    array = sparse_array(rng, 2_000_000, 0.3)
    frame = joined(_core.codec.encode(array))
    out = np.empty_like(array)

    _core.codec.decode_into(frame, out, threads=3)

    assert same_bits(out, array)


def test_instruction_sets_give_the_same_frames(rng):
    if not _core.COMPILED or _core.shard_reduce.instruction_set() != "avx2":
        pytest.skip("only one instruction set here")
    array = sparse_array(rng, 100_001, 0.2)
    frames = []
    for name in ("baseline", "avx2"):
        _core.codec.use_instruction_set(name)
        frames.append([joined(_core.codec.encode(a)) for a in (array, array.astype(np.float16))])

    assert frames[0] == frames[1]


def test_checksum_is_xxh3(codec, rng):
    data = rng.bytes(5000)
    for size in (*range(1100), 4096, 5000):
        assert codec.checksum(data[:size]) == xxhash.xxh3_64_intdigest(data[:size])


def test_bf16_bits_can_be_sent_as_they_are(codec, rng):
    bits = bf16_bits(rng.standard_normal(100, dtype=np.float32))
    out = np.empty(100, np.float32)

    codec.decode_into(joined(codec.encode(bits, wire_dtype="bf16")), out)

    assert same_bits(out, from_bf16(bits))


@pytest.mark.parametrize(
    ("array", "options", "error", "text"),
    [
        ([1.0], {}, TypeError, "not an array"),
        (np.zeros((4, 4))[:, 1:], {}, BufferError, "C-contiguous"),
        (np.zeros(3, complex), {}, TypeError, "complex128"),
        (np.zeros(3, object), {}, TypeError, "object"),
        (np.zeros(3, ">f4"), {}, TypeError, "do not carry"),
        (np.zeros(3), {"wire_dtype": "fp16"}, TypeError, "cannot be sent as fp16"),
        (np.zeros(3, "f4"), {"wire_dtype": "fp8"}, ValueError, "wire_dtype must be"),
        (np.zeros(3, "f4"), {"flags": 1 << 32}, ValueError, "flags"),
        (np.zeros(3, "f4"), {"flags": -1}, ValueError, "flags"),
        (np.zeros(3, "f4"), {"meta": bytes(2**20 + 1)}, ValueError, "meta has 1048577"),
        (np.zeros(3, "f4"), {"residual": np.zeros(3, "f4")}, ValueError, "residual needs"),
        (
            np.zeros((2, 3), "f4"),
            {"wire_dtype": "fp16", "residual": np.zeros((3, 2), "f4").T},
            BufferError,
            "residual must be writable and C-contiguous",
        ),
    ],
)
def test_encode_refuses(codec, array, options, error, text):
    with pytest.raises(error, match=text):
        codec.encode(array, **options)


@pytest.mark.slow
def test_tensors_beyond_four_gigabytes(rng):
    """Lengths, offsets and chunk numbers do not wrap at 2**31 or 2**32."""
    array = np.zeros((1 << 30) + 12_345, np.float32)  # pages never written take no memory
    array[-70_000:] = rng.standard_normal(70_000, dtype=np.float32)
    array[1 << 29 : (1 << 29) + 20_000] = 1.5
    frame = joined(_core.codec.encode(array))
    assert array.nbytes > 1 << 32
    assert len(frame) < 2_000_000
    out = np.empty_like(array)

    _core.codec.decode_into(frame, out)
    assert np.array_equal(out, array)

    _core.codec.decode_reduce([frame, frame], out, scale=0.5)
    assert np.array_equal(out, array)


@pytest.mark.slow
def test_frames_beyond_two_gigabytes(rng):
    array = np.zeros((1 << 31) + 99_999, np.uint8)
    array[-200_000:] = rng.integers(0, 256, 200_000)
    frame = np.empty(_core.codec.frame_bound(array.nbytes), np.uint8)

    size = _core.codec.encode_into(array, frame, compress=False)
    assert size > 1 << 31
    out = np.empty_like(array)
    _core.codec.decode_into(frame[:size], out)

    assert np.array_equal(out[-300_000:], array[-300_000:])
    assert not out[:-200_000:4096].any()


@settings(max_examples=40, deadline=None)
@given(world_size=st.integers(1, 12), count=st.integers(0, 40_000), seed=st.integers(0, 2**32))
def test_decode_reduce_agrees_with_the_twin(world_size, count, seed):
    rng = np.random.default_rng(seed)
    shards = [sparse_array(rng, count, rng.random() ** 3) for _ in range(world_size)]
    shards += normal_shards(rng, 1, count)
    frames = [joined(_core.codec.encode(shard)) for shard in shards]
    ours, theirs = np.empty((2, count), np.float32)

    _core.codec.decode_reduce(frames, ours, scale=0.1)
    twin.decode_reduce(frames, theirs, scale=0.1)

    assert same_bits(ours, theirs)
