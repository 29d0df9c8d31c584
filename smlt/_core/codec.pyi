"""Tensors to frames and back: bit-exact, checksummed, in chunks of 64 KB."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smlt._core.frame_header import FrameFormatError as FrameFormatError
from smlt._core.frame_header import Header as Header
from smlt._core.frame_header import TensorInfo as TensorInfo
from smlt._core.kinds import Dtype, Order
from smlt._core.shard_reduce import _Buffer

def use_instruction_set(name: str) -> None: ...
def checksum(data: _Buffer) -> int: ...
def encode(
    array: Any,
    *,
    wire_dtype: Dtype | None = None,
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: NDArray[np.float32] | None = None,
) -> list[bytes | memoryview]: ...
def encode_tensors(
    tensors: Mapping[str, Any],
    *,
    bf16: Collection[str] = (),
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
) -> list[bytes | memoryview]: ...
def encode_into(
    array: Any,
    out: _Buffer,
    *,
    wire_dtype: Dtype | None = None,
    flags: int = 0,
    weight: float = 0.0,
    meta: bytes = b"",
    compress: bool = True,
    checksum: bool = True,
    residual: NDArray[np.float32] | None = None,
) -> int: ...
def frame_bound(nbytes: int, meta_bytes: int = 0) -> int: ...
def read_header(frame: _Buffer, *, max_bytes: int | None = None) -> Header: ...
def verify(frame: _Buffer, *, max_bytes: int | None = None) -> Header: ...
def decode_into(
    frame: _Buffer, out: _Buffer, *, verify: bool = True, threads: int = 1
) -> Header: ...
def decode_add(
    frame: _Buffer,
    out: _Buffer,
    *,
    scale: float | None = None,
    verify: bool = True,
    threads: int = 1,
) -> Header: ...
def decode_tensors(
    frame: _Buffer, *, max_bytes: int, verify: bool = True, threads: int = 1
) -> dict[str, NDArray[Any]]: ...
def decode_reduce(
    frames: Iterable[_Buffer],
    out: _Buffer,
    *,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    verify: bool = True,
    threads: int = 1,
) -> list[Header]: ...

class FrameReducer:
    def __init__(
        self,
        count: int,
        world_size: int,
        *,
        dtype: Dtype = "fp32",
        weights: Sequence[float] | None = None,
        order: Order = "tree",
        threads: int = 1,
    ) -> None: ...
    @property
    def missing(self) -> list[int]: ...
    def add(
        self, index: int, frame: _Buffer, *, verify: bool = True
    ) -> tuple[Header, list[int]]: ...
    def add_shard(self, index: int, shard: _Buffer) -> list[int]: ...
    def finish(self, out: _Buffer, scale: float | None = None) -> None: ...
