"""Sum, mean and weighted mean of equal shards, in place, at the speed of memory."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, overload

import typing_extensions
from numpy.typing import NDArray

from smlt._core.kinds import Dtype, Order

# NumPy's stubs say that arrays are buffers only from Python 3.12 on.
_Buffer: TypeAlias = typing_extensions.Buffer | NDArray[Any]

DTYPES: tuple[Dtype, ...]
ORDERS: tuple[Order, ...]

def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
@overload
def reduce(
    shards: Iterable[_Buffer],
    out: _Buffer,
    *,
    dtype: Dtype | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    threads: int = 1,
    norm: Literal[False] = False,
) -> None: ...
@overload
def reduce(
    shards: Iterable[_Buffer],
    out: _Buffer,
    *,
    dtype: Dtype | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    threads: int = 1,
    norm: Literal[True],
) -> float: ...
def reduce_cast(
    shards: Iterable[_Buffer],
    out: _Buffer,
    *,
    wire_dtype: Literal["fp16", "bf16"],
    residual: _Buffer | None = None,
    dtype: Dtype | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None: ...
def reduce_sgd(
    shards: Iterable[_Buffer],
    param: _Buffer,
    momentum_buffer: _Buffer | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first_step: bool = False,
    dtype: Dtype | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None: ...
def reduce_adamw(
    shards: Iterable[_Buffer],
    param: _Buffer,
    exp_avg: _Buffer,
    exp_avg_sq: _Buffer,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    dtype: Dtype | None = None,
    weights: Iterable[float] | None = None,
    scale: float | None = None,
    order: Order = "tree",
    threads: int = 1,
    norm: bool = False,
) -> float | None: ...

class StreamReducer:
    def __init__(
        self,
        count: int,
        world_size: int,
        *,
        dtype: Dtype | None = None,
        weights: Sequence[float] | None = None,
        order: Order = "tree",
        threads: int = 1,
    ) -> None: ...
    @property
    def missing(self) -> list[int]: ...
    @property
    def held(self) -> list[int]: ...
    @property
    def partial_count(self) -> int: ...
    def add(self, index: int, shard: _Buffer) -> list[int]: ...
    def finish(self, out: _Buffer, scale: float | None = None) -> None: ...
