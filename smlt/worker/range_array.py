"""An array in a store, of which only the rows that are used are fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray

from smlt.worker.data_files import StoredFile

_BLOCK_BYTES = 256 << 10
# Neighbouring blocks come in one request, up to this size.
_REQUEST_BYTES = 8 << 20
_REQUESTS_AT_ONCE = 8


class RangeArray(NDArrayOperatorsMixin):
    """Reads like a read-only ``np.memmap``; indexing returns NumPy arrays of its own.

    Rows are fetched in aligned blocks of about 256 KB, which are kept in the local cache. Any
    method or operator that needs the whole array fetches all of it.
    """

    def __init__(
        self, file: StoredFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._file = file
        self._offset = offset
        self._row_shape = shape[1:]
        self._row_items = math.prod(self._row_shape)
        self._row_bytes = self._row_items * dtype.itemsize
        self._block_rows = max(1, _BLOCK_BYTES // self._row_bytes)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"RangeArray({self._file.name}, shape={self.shape}, dtype={self.dtype})"

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self), self._block_rows):
            yield from self[first : first + self._block_rows]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a range-read array cannot become a NumPy array without a copy")
        values: NDArray[Any] = self[:]
        return values if dtype is None else values.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, RangeArray) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(np.asarray(self), name)

    def __getitem__(self, key: Any) -> Any:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, slice):
            values = self._take(np.arange(len(self))[rows])
            return values[(slice(None), *rest)] if rest else values
        if rows is None or rows is Ellipsis or isinstance(rows, bool | np.bool_):
            return np.asarray(self)[key]
        if isinstance(rows, int | np.integer):
            return self._row(int(rows))[(0, *rest)]
        index = np.asarray(rows)
        if index.dtype == bool:
            if index.ndim != 1:
                return np.asarray(self)[key]
            if len(index) != len(self):
                raise IndexError(f"a mask of {len(index)} does not fit {len(self)} rows")
            index = np.flatnonzero(index)
        if not np.issubdtype(index.dtype, np.integer) and index.size:
            raise IndexError("rows are indexed by integers, slices, integer arrays and masks")
        values = self._take(self._normalise(index.reshape(-1)))
        # Row i of values is row index[i]: so it pairs with further index arrays as NumPy would.
        return values[(np.arange(index.size).reshape(index.shape), *rest)]

    def _normalise(self, index: NDArray[Any]) -> NDArray[np.int64]:
        index = index.astype(np.int64)
        outside = (index < -len(self)) | (index >= len(self))
        if outside.any():
            raise IndexError(
                f"row {index[outside][0]} is outside {self._file.name}, which has {len(self)}"
            )
        return np.where(index < 0, index + len(self), index)

    def _row(self, row: int) -> NDArray[Any]:
        """A copy of the row, as an array of one row."""
        if not -len(self) <= row < len(self):
            self._normalise(np.array([row]))
        block, within = divmod(row % len(self), self._block_rows)
        return self._block(block)[within : within + 1].copy()

    def _take(self, index: NDArray[np.int64]) -> NDArray[Any]:
        values = np.empty((len(index), *self._row_shape), self.dtype)
        if not len(index):
            return values
        blocks = index // self._block_rows
        order = np.argsort(blocks, kind="stable")
        numbers, starts = np.unique(blocks[order], return_index=True)
        self._bring(numbers.tolist())
        for number, (start, stop) in zip(
            numbers.tolist(), pairwise([*starts.tolist(), len(index)]), strict=True
        ):
            places = order[start:stop]
            within = index[places] - number * self._block_rows
            values[places] = self._block(number)[within]
        return values

    def _block(self, block: int) -> NDArray[Any]:
        """The rows of a block, from the cache or else from the store."""
        start, length = self._span(block)
        data = self._file.part(start, length)
        if data is None:
            data = self._fetch([block])
        return data.view(self.dtype).reshape(-1, *self._row_shape)

    def _bring(self, blocks: Sequence[int]) -> None:
        """Fetch the blocks that are not in the cache, several requests at once."""
        runs = self._runs(
            [block for block in blocks if self._file.part(*self._span(block)) is None]
        )
        if len(runs) < 2:
            for run in runs:
                self._fetch(run)
            return
        with ThreadPoolExecutor(min(len(runs), _REQUESTS_AT_ONCE), "range-read") as pool:
            for done in [pool.submit(self._fetch, run) for run in runs]:
                done.result()

    def _runs(self, blocks: Sequence[int]) -> list[list[int]]:
        longest = max(1, _REQUEST_BYTES // (self._block_rows * self._row_bytes))
        runs: list[list[int]] = []
        for block in blocks:
            if runs and runs[-1][-1] + 1 == block and len(runs[-1]) < longest:
                runs[-1].append(block)
            else:
                runs.append([block])
        return runs

    def _fetch(self, run: Sequence[int]) -> NDArray[np.uint8]:
        """Fetch neighbouring blocks, keep each, and return their bytes."""
        first, _ = self._span(run[0])
        last, length = self._span(run[-1])
        data = self._file.read(first, last + length - first)
        for block in run:
            start, length = self._span(block)
            self._file.keep(start, memoryview(data)[start - first :][:length])
        return np.frombuffer(data, np.uint8)

    def _span(self, block: int) -> tuple[int, int]:
        """Where the block lies in the file, and its length in bytes."""
        rows = min(self._block_rows, len(self) - block * self._block_rows)
        start = self._offset + block * self._block_rows * self._row_bytes
        return start, rows * self._row_bytes
