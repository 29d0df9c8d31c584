"""``.npy`` and ``.npz`` files as arrays that are not read before they are used."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from smlt.errors import TaskError
from smlt.worker.data_files import DataFile, LocalFile, StoredFile
from smlt.worker.range_array import RangeArray

# The fixed part of a zip entry's own header; the lengths of its name and extra field end it.
_ENTRY_HEADER = struct.Struct("<26xHH")


def open_npy(file: DataFile, stream: BinaryIO) -> NDArray[Any] | RangeArray:
    """Return the array whose header begins where the stream of the file stands.

    Raises:
        ValueError: it is no array, holds Python objects, or is cut short.
    """
    beginning = stream.tell()
    version = npy_format.read_magic(stream)
    if version > (2, 0):
        # Non-Latin names of fields: NumPy has no public reader of just that header.
        stream.seek(beginning)
        return npy_format.read_array(stream, allow_pickle=False)
    read_header = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }[version]
    shape, fortran, dtype = read_header(stream)
    offset = stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled; save plain numbers")
    if offset + math.prod(shape) * dtype.itemsize > file.size:
        raise ValueError("it is cut short")
    if math.prod(shape) * dtype.itemsize == 0:
        return np.empty(shape, dtype)
    if isinstance(file, StoredFile) and shape and not fortran:
        return RangeArray(file, offset, shape, dtype)
    return np.memmap(file.whole(), dtype, "r", offset, shape, "F" if fortran else "C")


class Archive(Mapping[str, "NDArray[Any] | RangeArray"]):
    """The arrays of an ``.npz`` file: uncompressed ones are mapped or range-read in place."""

    def __init__(self, name: str, file: DataFile) -> None:
        self._name = name
        self._file = file
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            self._entries = {
                entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()
            }

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> NDArray[Any] | RangeArray:
        """Return an array.

        Raises:
            TaskError: there is none of this name, or it cannot be read.
        """
        entry = self._entries.get(name.removesuffix(".npy"))
        if entry is None:
            raise TaskError(f"there is no {name!r} in {self._name}; it holds {', '.join(self)}")
        try:
            if entry.compress_type == zipfile.ZIP_STORED:
                return self._in_place(entry)
            return self._unpacked(entry)
        except (ValueError, EOFError, zipfile.BadZipFile) as exc:
            raise TaskError(f"{name} in {self._name} cannot be read as an array: {exc}") from exc

    def _in_place(self, entry: zipfile.ZipInfo) -> NDArray[Any] | RangeArray:
        with self._file.open() as stream:
            stream.seek(entry.header_offset)
            lengths = _ENTRY_HEADER.unpack(stream.read(_ENTRY_HEADER.size))
            stream.seek(sum(lengths), 1)
            return open_npy(self._file, stream)

    def _unpacked(self, entry: zipfile.ZipInfo) -> NDArray[Any]:
        whole = LocalFile(self._file.whole())
        with (
            whole.open() as stream,
            zipfile.ZipFile(stream) as archive,
            archive.open(entry) as member,
        ):
            array = npy_format.read_array(cast("BinaryIO", member), allow_pickle=False)
        array.flags.writeable = False
        return array
