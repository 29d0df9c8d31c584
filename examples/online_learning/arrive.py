"""Write burst number N into the data folder: rows of a line that turns a little each time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).with_name("data")
ROWS = 512


def write(burst: int, folder: Path = DATA) -> Path:
    """Write a burst, under another name until it is whole."""
    rng = np.random.default_rng(burst)
    x = rng.normal(size=(ROWS, 16)).astype(np.float32)
    slope = np.cos(np.arange(16) + 0.3 * burst).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".burst-{burst:04d}.npz"
    np.savez(partial, x=x, y=x @ slope)
    return partial.rename(folder / f"burst-{burst:04d}.npz")


if __name__ == "__main__":
    print(write(int(sys.argv[1])))
