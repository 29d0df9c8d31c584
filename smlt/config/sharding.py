"""What is chosen where nobody says so: by what a request to the parameter store costs."""

from __future__ import annotations

SHARD_MB = 4.0
S3_SHARD_MB = 32.0
S3_RANKS_PER_OWNER = 4
LEASE_S = 10.0
S3_LEASE_S = 30.0
AUTO = "auto"
"""As the dtype on the wire: the first steps decide whether gradients are rounded to bf16."""


def sharding(
    parameters: str | None, ranks: int, *, shard_mb: float | None, aggregators: int | None
) -> tuple[int, int | None]:
    """Return the bytes of the largest shard, and how many ranks own shards (None: all).

    A server's requests cost nothing but time. S3 bills each, and lets the first byte wait for tens
    of milliseconds: larger shards and few owners, unless they are given.
    """
    if shard_mb is None:
        shard_mb = S3_SHARD_MB if is_billed(parameters) else SHARD_MB
    if aggregators is None and is_billed(parameters):
        aggregators = max(1, ranks // S3_RANKS_PER_OWNER)
    return int(shard_mb * (1 << 20)), aggregators


def lease(parameters: str | None) -> float:
    """Return after how many seconds a silent rank is dead; it speaks ten times as often."""
    return S3_LEASE_S if is_billed(parameters) else LEASE_S


def is_open(parameters: str | None, *, shard_mb: float | None, aggregators: int | None) -> bool:
    """Whether the first steps may try several ways of cutting and sending, and keep the best.

    Not where the user has chosen; nor on S3, where a worse way costs money.
    """
    given = shard_mb is not None or aggregators is not None
    return not (given or is_billed(parameters))


def is_billed(parameters: str | None) -> bool:
    """Whether each request to the parameter store costs money."""
    return parameters is not None and parameters.startswith("s3://")
