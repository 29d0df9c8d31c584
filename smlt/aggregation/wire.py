"""What becomes of a flat buffer's values on the wire: they go as they are, or rounded to 16 bits.

What rounding takes away is not lost: it is owed, and added to the next step's contribution (error
feedback; Seide et al. 2014, Karimireddy et al. 2019). A rank owes for its own contributions and,
as the owner of a shard, for the mean that it put; both in units of the sum over samples, so that
what one rank owes any rank may pay, under any plan of shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smlt.errors import ConfigError, UserError
from smlt.io import frame
from smlt.io.frame import Dtype, Pieces, ShardHeader

Flat = NDArray[np.float32]

LOSSLESS: Dtype = "fp32"
DTYPES: tuple[Dtype, ...] = (LOSSLESS, "bf16", "fp16")
_FP16_MAX = 65504.0


def check_dtype(dtype: str) -> Dtype:
    """Return the dtype that a name is for.

    Raises:
        ConfigError: there is no such dtype.
    """
    for known in DTYPES:
        if dtype == known:
            return known
    raise ConfigError(f"wire_dtype is {dtype!r}: write fp32, bf16, fp16 or auto")


@dataclass(slots=True, eq=False)
class Wire:
    """How one flat buffer travels, step after step; one step at a time."""

    dtype: Dtype = LOSSLESS
    owed: Flat | None = None
    """As long as the buffer; None where rounding takes nothing away that the user would keep."""
    is_whole: bool = True
    """False while a step is under way: what is owed is then that of no step."""

    @classmethod
    def of(cls, dtype: str, elements: int, world_size: int) -> Wire:
        """Return the wire of a buffer. One rank alone sends nothing, and rounds nothing.

        Raises:
            ConfigError: there is no such dtype.
        """
        known = check_dtype(dtype)
        if known == LOSSLESS or world_size == 1:
            return cls()
        return cls(known, np.zeros(elements, np.float32))

    def go_over(self, dtype: Dtype, elements: int) -> None:
        """Have the next steps travel in a dtype. In another one, what is owed is forgotten."""
        if dtype != self.dtype:
            self.dtype = dtype
            self.owed = None if dtype == LOSSLESS else np.zeros(elements, np.float32)

    def nbytes(self, elements: int) -> int:
        """Return the bytes of so many values, without their frame."""
        return elements * (4 if self.dtype == LOSSLESS else 2)

    def contribution(self, flat: Flat, span: slice, header: ShardHeader) -> Pieces:
        """Return the frame of a rank's contribution; from now on it owes what was rounded away.

        Raises:
            UserError: a value is too large for fp16.
        """
        if self.owed is None:
            return frame.encode_shard(flat[span], header, self.dtype)
        self.is_whole = False
        self._check(flat[span])
        return frame.encode_shard(flat[span], header, self.dtype, self.owed[span])

    def mean(self, flat: Flat, span: slice, header: ShardHeader) -> Pieces:
        """Return the frame of a mean, and replace the values by what the frame holds.

        Raises:
            UserError: as ``contribution``.
        """
        values = flat[span]
        if self.dtype == LOSSLESS:
            return frame.encode_shard(values, header)
        lost = None if self.owed is None else np.zeros_like(values)
        self._check(values)
        pieces = frame.encode_shard(values, header, self.dtype, lost)
        frame.decode_shard_into(b"".join(pieces), values, self.dtype)
        if self.owed is not None and lost is not None:
            lost *= header.weight
            self.owed[span] += lost
        return pieces

    def _check(self, values: Flat) -> None:
        if self.owed is None or self.dtype != "fp16" or not values.size:
            return
        if max(values.max(), -values.min()) > _FP16_MAX:
            raise UserError(
                f"a gradient, summed over samples, is beyond the {_FP16_MAX:,.0f} that fp16 holds: "
                "send it as bf16 or fp32"
            )
