"""How a gradient is cut where nobody says so: by what a request costs."""

from __future__ import annotations

SHARD_MB = 4.0
S3_SHARD_MB = 32.0
S3_RANKS_PER_OWNER = 4


def sharding(
    parameters: str | None, ranks: int, *, shard_mb: float | None, aggregators: int | None
) -> tuple[int, int | None]:
    """Return the bytes of the largest shard, and how many ranks own shards (None: all).

    A server's requests cost nothing but time. S3 bills each, and lets the first byte wait for tens
    of milliseconds: larger shards and few owners, unless they are given.
    """
    on_s3 = parameters is not None and parameters.startswith("s3://")
    if shard_mb is None:
        shard_mb = S3_SHARD_MB if on_s3 else SHARD_MB
    if aggregators is None and on_s3:
        aggregators = max(1, ranks // S3_RANKS_PER_OWNER)
    return int(shard_mb * (1 << 20)), aggregators
