"""The chunk modes in NumPy: raw, zero, LZ4, bitmap."""

import lz4.block
import numpy as np
from numpy.typing import NDArray

from smlt._core.frame_header import CHUNK, ITEM_BYTES, FrameFormatError

RAW, ZERO, LZ4, BITMAP = range(4)

Bytes = NDArray[np.uint8]


def word_bytes(dtype: str) -> int:
    """Return the size of the words that a bitmap counts."""
    return 2 if ITEM_BYTES[dtype] == 2 else 4


def split(data: Bytes) -> list[Bytes]:
    return [data[i : i + CHUNK] for i in range(0, data.size, CHUNK)]


def encode(chunk: Bytes, word: int) -> tuple[int, bytes | Bytes]:
    """Return the smallest form that saves an eighth, else the chunk itself."""
    if not chunk.any():
        return ZERO, b""
    forms: list[tuple[int, bytes]] = []
    if chunk.size % word == 0:
        forms.append((BITMAP, encode_bitmap(chunk.view(f"<u{word}"))))
    # Whatever LZ4 cannot do to the first 4 KB it will hardly do to the rest.
    head = chunk[:4096].tobytes()
    if len(lz4.block.compress(head, store_size=False)) < len(head) - len(head) // 8:
        forms.append((LZ4, lz4.block.compress(chunk.tobytes(), store_size=False)))
    mode, stored = min(forms, key=lambda form: len(form[1]), default=(RAW, b""))
    worthwhile = forms and len(stored) < chunk.size - chunk.size // 8
    return (mode, stored) if worthwhile else (RAW, chunk)


def encode_bitmap(words: NDArray[np.unsignedinteger]) -> bytes:
    """Return summary, map and non-zero words."""
    bits = np.packbits(words != 0, bitorder="little")
    summary = np.packbits(bits != 0, bitorder="little")
    return b"".join((summary.tobytes(), bits[bits != 0].tobytes(), words[words != 0].tobytes()))


def decode(stored: Bytes, mode: int, size: int, word: int) -> Bytes:
    """Return a chunk's `size` bytes.

    Raises:
        FrameFormatError: the stored bytes are not of that mode, or not of that size.
    """
    if mode == RAW and stored.size == size:
        return stored
    if mode == ZERO and stored.size == 0:
        return np.zeros(size, np.uint8)
    if mode == LZ4 and 0 < stored.size < size:
        return _decode_lz4(stored, size)
    if mode == BITMAP and 0 < stored.size < size and size % word == 0:
        return _decode_bitmap(stored, size // word, word)
    raise FrameFormatError(f"a chunk has mode {mode} and {stored.size} bytes")


def _decode_lz4(stored: Bytes, size: int) -> Bytes:
    try:
        data = lz4.block.decompress(stored.tobytes(), uncompressed_size=size)
    except lz4.block.LZ4BlockError as exc:
        raise FrameFormatError("a chunk does not decode to its size") from exc
    if len(data) != size:
        raise FrameFormatError("a chunk does not decode to its size")
    return np.frombuffer(data, np.uint8)


def _decode_bitmap(stored: Bytes, words: int, word: int) -> Bytes:
    map_bytes = -(-words // 8)
    summary = np.unpackbits(stored[: -(-map_bytes // 8)], bitorder="little")
    if summary.size < map_bytes or summary[map_bytes:].any():
        raise FrameFormatError("a chunk does not decode to its size")
    kept = np.flatnonzero(summary)
    start = -(-map_bytes // 8)
    bits = np.zeros(map_bytes, np.uint8)
    if stored.size < start + kept.size:
        raise FrameFormatError("a chunk does not decode to its size")
    bits[kept] = stored[start : start + kept.size]
    mask = np.unpackbits(bits, bitorder="little")
    values = stored[start + kept.size :]
    if mask[words:].any() or values.size != word * np.count_nonzero(mask):
        raise FrameFormatError("a chunk does not decode to its size")
    out = np.zeros(words, f"<u{word}")
    out[mask[:words] != 0] = np.frombuffer(values.tobytes(), f"<u{word}")
    return out.view(np.uint8)
