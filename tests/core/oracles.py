"""Sums written out by hand in NumPy: what the kernels are compared with."""

import numpy as np


def left_fold(terms):
    total = terms[0].copy()
    for term in terms[1:]:
        total = total + term
    return total


def binary_tree(terms):
    """Pair neighbours, level by level; the last of an odd level moves up unpaired."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + ([terms[-1]] if len(terms) % 2 else [])
    return terms[0].copy()


def double_fold(terms, weights=None, scale=1.0):
    weights = [1.0] * len(terms) if weights is None else weights
    return (
        left_fold([w * t.astype(np.float64) for w, t in zip(weights, terms, strict=True)]) * scale
    ).astype(np.float32)


def expected(terms, order, weights=None, scale=None):
    """Return scale * sum of weights * terms in the documented order and rounding."""
    if order == "fp64":
        return double_fold(terms, weights, 1.0 if scale is None else scale)
    if weights is not None:
        terms = [np.float32(w) * t for w, t in zip(weights, terms, strict=True)]
    total = left_fold(terms) if order == "fold" else binary_tree(terms)
    return total if scale is None else total * np.float32(scale)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def normal_shards(rng, n, count):
    return [rng.standard_normal(count, dtype=np.float32) for _ in range(n)]


def sparse_array(rng, count, density, dtype=np.float32):
    array = rng.standard_normal(count).astype(dtype)
    array[rng.random(count) >= density] = 0
    return array


def bf16_bits(array):
    """Cut float32 to bf16 bits: exact for values that are bf16 already."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
