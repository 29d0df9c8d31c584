"""A rank's gradient sum, from the contributions of its virtual workers, in a fixed binary tree.

The tree over all virtual workers of a job is the same for any number of ranks: a rank holds a
subtree of it, and the owners of shards add the ranks' sums in the tree above (decision 0025).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.worker.task import Views

Ready = Callable[[str], None]


class GradientTree:
    """Sums ``leaves`` contributions, a power of two, into a buffer that holds zeros at first.

    Contributions come one after the other. Beside the buffer there is one for each level of the
    tree, and one to compute in; a single contribution goes straight into the buffer.
    """

    def __init__(self, root: GradientBuffer, leaves: int) -> None:
        self._root = root
        self._leaves = leaves
        shapes = {name: view.shape for name, view in root.views.items()}
        # Between contributions, buffer l holds the sum of 2^l of them, or nothing of use.
        self._levels = [GradientBuffer(shapes) for _ in range(leaves.bit_length() - 1)]
        self._scratch = GradientBuffer(shapes) if leaves > 1 else root
        self._merged: set[str] = set()

    def leaf(self, index: int, ready: Ready) -> tuple[Views, Ready]:
        """Return where a contribution goes, and what to call for each tensor that is final in it.

        ``ready`` is called when the tensor is final in the sum, which the last one makes it.
        """
        if index < self._leaves - 1:
            self._scratch.flat.fill(0.0)
            return self._scratch.views, _ignore
        self._merged.clear()

        def merge(name: str) -> None:
            self._merge(name)
            ready(name)

        return self._root.views, merge

    def add(self, index: int) -> None:
        """Add the contribution to its subtree, now that it is complete."""
        if index == self._leaves - 1:
            for name in self._root.names:
                self._merge(name)
            return
        level = 0
        while index >> level & 1:
            np.add(self._levels[level].flat, self._scratch.flat, out=self._scratch.flat)
            level += 1
        self._levels[level], self._scratch = self._scratch, self._levels[level]

    def _merge(self, name: str) -> None:
        """Add to a tensor of the last contribution what all levels hold of it."""
        if name in self._merged:
            return
        self._merged.add(name)
        for level in self._levels:
            np.add(level.views[name], self._root.views[name], out=self._root.views[name])


def _ignore(_: str) -> None:
    pass
