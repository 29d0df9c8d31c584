"""Seeds: one number for each place in a job, and the global generators set to it."""

from __future__ import annotations

import random

import numpy as np


def derive_seed(seed: int, *where: int) -> int:
    """Return 63 bits that depend on the job's seed and a place, such as (step, virtual worker).

    Different places give unrelated seeds: NumPy's ``SeedSequence`` mixes them.
    """
    high, low = np.random.SeedSequence(seed, spawn_key=where).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def seed_generators(seed: int) -> None:
    """Seed ``random`` and NumPy's global generator."""
    random.seed(seed)
    # User code draws from the global generator, whatever we would prefer.
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
