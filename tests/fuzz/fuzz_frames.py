"""Coverage-guided fuzzing of every frame decoder.

    python tests/fuzz/fuzz_frames.py [corpus folder] [-max_total_time=60]

Raw mutation would end at the checksums, so the input is a recipe: header fields and chunks, packed
by `frame_forge` with every checksum right. What the decoders then do must be the same each time:
a result, or FrameFormatError; the same as the NumPy twin's, whose branches guide the search
(native code reports no coverage). Bytes around every output are watched.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from smlt._core import codec
from tests.core.frame_forge import forge

COUNT = 300
GUARD = 64
DTYPES = ("fp32", "fp16", "bf16", "int8", "uint64", "none")


class Recipe:
    """Reads decisions off a string of bytes; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, limit: int) -> int:
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1] % limit

    def bytes(self, limit: int) -> bytes:
        size = self.number(256) * 256 + self.number(256)
        taken = self._data[self._at : self._at + min(size, limit)]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self._data[self._at :]


def frame_of(recipe: Recipe) -> bytes:
    """Build a frame that is right in all but a few ways."""
    kind = recipe.number(8)
    if kind == 0:
        return recipe.rest()
    if kind == 1:
        return forge(fields=recipe.rest())
    dtype = DTYPES[recipe.number(len(DTYPES))]
    count = COUNT if kind < 6 else recipe.number(256) * 256 + recipe.number(256)
    tensors = [(chr(97 + i), dtype, (count,)) for i in range(1 if kind < 7 else recipe.number(4))]
    chunks = [(recipe.number(5), recipe.bytes(5000)) for _ in range(1 + (kind == 5))]
    return forge(tensors=tensors, chunks=chunks, meta=recipe.bytes(20))


def attempt(decode, *arguments, **options):
    try:
        return decode(*arguments, **options)
    except codec.FrameFormatError:
        return None


def guarded(dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return an array and the bytes it lies in, filled with a pattern."""
    room = np.full(4 * COUNT + 2 * GUARD, 0xA5, np.uint8)
    return room[GUARD:-GUARD].view(dtype), room


def check_guards(room: np.ndarray) -> None:
    if (room[:GUARD] != 0xA5).any() or (room[-GUARD:] != 0xA5).any():
        raise MemoryError("a decoder wrote outside its output")


def decode_all(data: bytes) -> None:
    """Hand one input to every decoder."""
    frame = frame_of(Recipe(data))
    attempt(codec.read_header, frame)
    attempt(codec.verify, frame)
    attempt(codec.decode_tensors, frame, max_bytes=1 << 20)
    out, room = guarded(np.float32)
    raw, raw_room = guarded(np.uint8)
    for verify in (True, False):
        attempt(codec.decode_into, frame, out, verify=verify)
        attempt(codec.decode_into, frame, raw[: 2 * COUNT], verify=verify)
        attempt(codec.decode_into, frame, raw, verify=verify)
        attempt(codec.decode_add, frame, out, verify=verify)
        for order in ("fold", "tree", "fp64"):
            attempt(codec.decode_reduce, [frame] * 3, out, order=order, verify=verify)
    attempt(codec.FrameReducer(COUNT, 1).add, 0, frame)
    check_guards(room)
    check_guards(raw_room)


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["smlt._core._reference", "smlt._core.frame_header"]):
        from smlt._core._reference import codec as twin

    def compare_all(data: bytes) -> None:
        decode_all(data)
        frame = frame_of(Recipe(data))
        ours, theirs = np.zeros((2, 4 * COUNT), np.uint8)
        header = attempt(codec.decode_into, frame, ours)
        try:
            expected = twin.decode_into(frame, theirs)
        except twin.FrameFormatError:
            return  # the LZ4 library refuses some blocks that decode well
        if header != expected or (ours != theirs).any():
            raise ValueError("the compiled codec and its twin disagree")

    atheris.Setup(sys.argv, compare_all)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
