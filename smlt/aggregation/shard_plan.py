"""Cut a flat gradient into equal shards and give each an owner.

Shards are flat slices, never whole tensors: the best plan by tensors is up to 8.7 times
unbalanced on a model with one large embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 16
"""Elements; 64 bytes of float32, a cache line."""
_WORTHWHILE_BYTES = 64 << 10
"""A shard's messages cost as much as carrying this: smaller shards only slow a step down."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Where each shard begins, how long it is, and which rank reduces it."""

    elements: int
    shard_elements: int
    """Length of every shard but the last, a multiple of ALIGNMENT."""
    owners: tuple[int, ...]
    """The ranks that own shards, in order; shard j belongs to ``owners[j % m]``."""

    @property
    def shards(self) -> int:
        return -(-self.elements // self.shard_elements) if self.elements else 1

    def span(self, shard: int) -> slice:
        """Return the shard's elements; the one shard of an empty gradient is empty."""
        start = shard * self.shard_elements
        return slice(start, min(start + self.shard_elements, self.elements))

    def owner(self, shard: int) -> int:
        return self.owners[shard % len(self.owners)]

    def owned(self, rank: int) -> list[int]:
        return [shard for shard in range(self.shards) if self.owner(shard) == rank]


def plan_shards(
    elements: int, *, world_size: int, shard_bytes: int, aggregators: int | None = None
) -> ShardPlan:
    """Plan for a gradient of ``elements`` float32, averaged by ``aggregators`` of the ranks.

    There are as many shards as keep every owner equally busy and no shard larger than
    ``shard_bytes``; a gradient smaller than its owners leaves some of them without a shard.
    Without ``aggregators`` all ranks share the work, or as many as have a worthwhile part of it.

    Raises:
        ValueError: a count is out of its range.
    """
    if aggregators is None:
        aggregators = max(1, 4 * elements // min(_WORTHWHILE_BYTES, max(shard_bytes, 1)))
    m = min(aggregators, world_size)
    if world_size < 1 or m < 1 or elements < 0 or shard_bytes < 4 * ALIGNMENT:
        raise ValueError(
            f"no plan for {elements} elements, {world_size} ranks, {m} aggregators and shards of "
            f"{shard_bytes} bytes (at least {4 * ALIGNMENT})"
        )
    largest = shard_bytes // 4 // ALIGNMENT * ALIGNMENT
    rounds = max(1, -(-elements // (m * largest)))
    even = -(-elements // (m * rounds))
    aligned = max(ALIGNMENT, -(-even // ALIGNMENT) * ALIGNMENT)
    # Spread over the ranks: neighbours tend to be started, and slowed, together.
    owners = tuple(index * world_size // m for index in range(m))
    return ShardPlan(elements, aligned, owners)
