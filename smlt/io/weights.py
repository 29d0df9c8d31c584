"""Weights as one safetensors file that any tool reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt.errors import CheckpointError, NotFoundError, PreconditionError, StoreFullError
from smlt.io import safetensors_file
from smlt.io.object_store import ObjectStore
from smlt.io.tensor import ITEM_SIZES, Tensor, as_tensor

_GENERATION = "generation"
"""In the metadata of a file: that which put it there."""


def pack_weights(
    tensors: Mapping[str, Tensor | NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return the file in pieces; the tensors are referred to, not copied.

    Raises:
        CheckpointError: a tensor is complex128, which safetensors does not know.
    """
    wrapped = {name: as_tensor(array) for name, array in tensors.items()}
    for name, tensor in wrapped.items():
        if tensor.dtype == "C128":
            raise CheckpointError(f"{name} is complex128, which a safetensors file cannot hold")
    # The widest first, so that each tensor of a mapped file is aligned to its elements.
    names = sorted(wrapped, key=lambda name: (-ITEM_SIZES[wrapped[name].dtype], name))
    table = [(name, wrapped[name].dtype, wrapped[name].shape) for name in names]
    head = safetensors_file.header(table, metadata or {})
    return [memoryview(head), *(wrapped[name].data.data for name in names)]


def unpack_weights(data: bytes | memoryview, what: str) -> dict[str, Tensor]:
    """Return the tensors of a file, sharing its memory, by sorted name.

    Raises:
        CheckpointError: the data is no safetensors file; ``what`` names it in the message.
    """
    entries, _, begin = safetensors_file.read_header(data, what)
    flat = np.frombuffer(data, np.uint8)
    return {
        entry.name: Tensor(
            entry.dtype, entry.shape, _aligned(flat[begin + entry.start : begin + entry.stop])
        )
        for entry in sorted(entries, key=lambda entry: entry.name)
    }


async def save_weights(
    store: ObjectStore,
    key: str,
    tensors: Mapping[str, Tensor | NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Put the weights into the object store as one safetensors file."""
    await store.put(key, pack_weights(tensors, metadata))


async def replace_weights(
    store: ObjectStore,
    key: str,
    tensors: Mapping[str, Tensor | NDArray[Any]],
    *,
    generation: int,
) -> None:
    """Put a generation's weights in the place of any but a later one's.

    A process that slept through the end of its generation changes nothing of what came after.
    """
    while True:
        try:
            data, etag = await store.get(key)
        except NotFoundError:
            etag = ""
        else:
            if _generation(data, key) > generation:
                return
        pieces = pack_weights(tensors, {_GENERATION: str(generation)})
        try:
            await store.put(key, pieces, if_absent=not etag, if_match=etag)
        except PreconditionError:
            continue  # whose were put meanwhile?
        return


def _generation(data: bytes, what: str) -> int:
    """Return whose weights these are; 0 where they are damaged, or do not say it."""
    try:
        _, metadata, _ = safetensors_file.read_header(data, what)
        return int(metadata.get(_GENERATION, 0))
    except (CheckpointError, ValueError):
        return 0


async def read_weights(store: ObjectStore, key: str) -> dict[str, Tensor]:
    """Return the weights that an object of the store holds.

    Raises:
        NotFoundError: no such object.
        CheckpointError: it is no safetensors file.
    """
    data, _ = await store.get(key)
    return await asyncio.to_thread(unpack_weights, data, key)


def write_weights_file(
    path: Path,
    tensors: Mapping[str, Tensor | NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights to a local file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(pack_weights(tensors, metadata))
        temporary.replace(path)
    except OSError as exc:
        raise StoreFullError(f"cannot write {path}: {exc.strerror}") from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """Return the weights of a local safetensors file.

    Raises:
        CheckpointError: it cannot be read, or is no safetensors file.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror}") from exc
    return unpack_weights(data, str(path))


def _aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes where every element type may lie: views of other files need a copy."""
    return data if data.ctypes.data % 16 == 0 else data.copy()
