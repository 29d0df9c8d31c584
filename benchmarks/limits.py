"""The 8-stream read limit, measured in C beside every reduction."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleaved import Function

CACHE = Path(__file__).parent / ".cache"


def compiler() -> str:
    """Return the C compiler's path.

    Raises:
        RuntimeError: there is none.
    """
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        raise RuntimeError("the limits are measured in C: install a compiler, or set CC")
    return found


def _library() -> ctypes.CDLL:
    CACHE.mkdir(exist_ok=True)
    source = Path(__file__).with_name("limits.c")
    library = CACHE / "limits.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        command = [compiler(), "-O3", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, timeout=60)
    loaded = ctypes.CDLL(str(library))
    loaded.read_streams.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    loaded.read_streams.restype = ctypes.c_float
    return loaded


def read_limit(arrays: Sequence[NDArray[np.float32]]) -> Function:
    """Return a function that reads all the arrays' bytes as fast as one core can."""
    library = _library()
    pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    words = arrays[0].nbytes // 4

    def read() -> object:
        return arrays and library.read_streams(pointers, len(arrays), words)

    return read
