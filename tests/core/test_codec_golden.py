"""Frames made by the first version stay readable, bit for bit, for ever."""

import numpy as np
import pytest

from tests.core.oracles import same_bits
from tests.data.make_frames import FOLDER, arrays


@pytest.mark.parametrize("name", arrays())
def test_golden_frames_decode_to_their_arrays(codec, name):
    want = arrays()[name]
    out = np.empty_like(want)

    header = codec.decode_into((FOLDER / f"{name}.frame").read_bytes(), out)

    assert same_bits(out, want)
    assert (header.flags, header.weight, header.meta) == (5, 0.25, b"golden")
    assert header.shape == want.shape


def test_golden_frame_of_many_tensors(codec):
    want = arrays()

    tensors = codec.decode_tensors((FOLDER / "many.frame").read_bytes(), max_bytes=10**6)

    assert list(tensors) == list(want)
    assert all(same_bits(tensors[name], want[name]) for name in want)


def test_golden_bf16_frame_widens(codec):
    exact = arrays()["raw_fp32"]
    out = np.empty_like(exact)

    header = codec.decode_into((FOLDER / "raw_bf16.frame").read_bytes(), out)

    assert header.dtype == "bf16"
    assert same_bits(out, (exact.view(np.uint32) & 0xFFFF0000).view(np.float32))


def test_a_later_version_is_refused_in_a_sentence(codec):
    frame = bytearray((FOLDER / "scalar.frame").read_bytes())
    frame[4] = 2

    with pytest.raises(codec.FrameFormatError, match="version 2, this smlt reads 1"):
        codec.read_header(frame)
