"""The safetensors file format: a length, a JSON header, and the tensors' bytes.

Source: the format's description (huggingface.co/docs/safetensors). Written here because parts of
checkpoints hold slices that are streamed from live memory, and NumPy has no bfloat16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smlt.errors import CheckpointError
from smlt.io.tensor import ITEM_SIZES

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The format's own bound."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file, and where its bytes lie behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Return the beginning of a file that holds the tensors (name, dtype, shape) in this order.

    It is as long as a multiple of 8 and depends on nothing but the arguments.
    """
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * ITEM_SIZES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_header(data: bytes | memoryview, what: str) -> tuple[list[Entry], dict[str, str], int]:
    """Return the entries by their place, the metadata, and where the tensors' bytes begin.

    Args:
        data: the whole file.
        what: what the file is, for the message.

    Raises:
        CheckpointError: the data is no safetensors file, is cut short, or has holes.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    begin = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or length > MAX_HEADER_BYTES or begin > len(data):
        raise CheckpointError(f"{what} is no safetensors file, or is cut short")
    try:
        table = json.loads(bytes(data[LENGTH_BYTES:begin]))
        metadata = table.pop("__metadata__", None) or {}
        entries = [_entry(name, fields) for name, fields in table.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{what} has a damaged safetensors header: {exc}") from exc
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise CheckpointError(f"{what} has a hole or an overlap before {entry.name}")
        end = entry.stop
    if begin + end != len(data):
        raise CheckpointError(f"{what} has {len(data) - begin} bytes of tensors, not {end}")
    return entries, {str(key): str(value) for key, value in metadata.items()}, begin


def _entry(name: str, fields: Mapping[str, Any]) -> Entry:
    start, stop = (int(offset) for offset in fields["data_offsets"])
    entry = Entry(name, fields["dtype"], tuple(int(n) for n in fields["shape"]), start, stop)
    if entry.dtype not in ITEM_SIZES:
        raise ValueError(f"{name} is of dtype {entry.dtype}, which is not supported")
    size = math.prod(entry.shape) * ITEM_SIZES[entry.dtype]
    if min(entry.shape, default=0) < 0 or stop - start != size:
        raise ValueError(f"{name} of shape {entry.shape} does not lie in {stop - start} bytes")
    return entry
