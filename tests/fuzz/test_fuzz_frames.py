"""A short, seeded run of the fuzz target, so that it is run at all."""

import random

import lz4.block
import numpy as np
import pytest

from smlt import _core
from tests.fuzz.fuzz_frames import COUNT, Recipe, decode_all, frame_of


def seeds():
    """Return recipes of good chunks in each mode, for the mutations to start from."""
    sparse = np.zeros(COUNT, np.float32)
    sparse[::17] = 1.5
    encoded = {
        0: sparse.tobytes(),
        1: b"",
        2: lz4.block.compress(sparse.tobytes(), store_size=False),
        3: b"".join(_core.codec.encode(sparse))[-200:],
    }
    for mode, stored in encoded.items():
        yield bytes([3, 0, mode, len(stored) >> 8, len(stored) & 255]) + stored


def mutations(seed, random_source):
    data = bytearray(seed)
    for _ in range(random_source.randrange(1, 6)):
        at = random_source.randrange(len(data))
        action = random_source.randrange(3)
        if action == 0:
            data[at] = random_source.randrange(256)
        elif action == 1:
            del data[at : at + random_source.randrange(1, 9)]
            data = data or bytearray(1)
        else:
            data[at:at] = random_source.randbytes(random_source.randrange(1, 9))
    return bytes(data)


def test_recipes_reach_the_decoders():
    out = np.empty(COUNT, np.float32)
    raw, zero, compressed, _ = seeds()
    for seed in (raw, zero, compressed):
        _core.codec.decode_into(frame_of(Recipe(seed)), out)


@pytest.mark.parametrize("number", range(4))
def test_mutated_frames_decode_or_are_refused(number):
    random_source = random.Random(number)
    for seed in seeds():
        decode_all(seed)
        for _ in range(150):
            decode_all(mutations(seed, random_source))


def test_random_bytes_decode_or_are_refused():
    random_source = random.Random(99)
    for _ in range(300):
        decode_all(random_source.randbytes(random_source.randrange(300)))
