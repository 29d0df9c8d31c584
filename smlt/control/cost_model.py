"""What a job costs: invocations, requests, stored and moved bytes, hours of a cache."""

from __future__ import annotations

import math
from typing import Literal

from smlt.control.prices import Prices, read_prices

Architecture = Literal["x86_64", "arm64"]
S3Class = Literal["standard", "express"]

MB_PER_GB = 1024  # Lambda's gigabyte: 1,769 MB are 1.7275 GB
BYTES_PER_GB = 1 << 30
BYTES_PER_ECPU = 1024
_POLLS = 2.0  # looks at an object of S3 until it is there, the last one being the GET itself


def gb_seconds(billed_ms: float, memory_mb: int) -> float:
    """Memory times time, as Lambda bills it."""
    return memory_mb / MB_PER_GB * billed_ms / 1000


def lambda_cost(
    billed_ms: float,
    memory_mb: int,
    requests: int,
    *,
    ephemeral_mb: int = 512,
    architecture: Architecture = "x86_64",
    prices: Prices | None = None,
) -> float:
    """Return what a number of invocations of one size cost, in US dollars.

    Args:
        billed_ms: sum of the billed durations, each already rounded up to 1 ms, init included.
        memory_mb: the function's memory.
        requests: how many invocations there were, failed ones included.
        ephemeral_mb: size of the function's /tmp.
        architecture: the function's processor.
        prices: by default the table that comes with the package.
    """
    prices = prices or read_prices()
    extra_mb = max(0.0, ephemeral_mb - prices.rate("lambda", "ephemeral_free_mb"))
    memory = gb_seconds(billed_ms, memory_mb) * prices.rate("lambda", "per_gb_second", architecture)
    if extra_mb:
        rate = prices.rate("lambda", "ephemeral_per_gb_second")
        memory += extra_mb / MB_PER_GB * billed_ms / 1000 * rate
    return memory + requests * prices.rate("lambda", "per_request")


def s3_cost(
    storage_class: S3Class,
    *,
    puts: float = 0,
    gets: float = 0,
    uploaded: float = 0,
    downloaded: float = 0,
    gb_months: float = 0,
    prices: Prices | None = None,
) -> float:
    """Return what requests, bytes and storage of one class of S3 cost, in US dollars.

    Requests to delete cost nothing. Bytes travel within the region.
    """
    prices = prices or read_prices()

    def rate(name: str) -> float:
        return prices.rate("s3", storage_class, name)

    return (
        puts * rate("per_put")
        + gets * rate("per_get")
        + uploaded / BYTES_PER_GB * rate("upload_per_gb")
        + downloaded / BYTES_PER_GB * rate("download_per_gb")
        + gb_months * rate("storage_per_gb_month")
    )


def cache_node_cost(
    node: str, seconds: float, nodes: int = 1, prices: Prices | None = None
) -> float:
    """Return what cache nodes cost, in US dollars: each hour that has begun is billed."""
    prices = prices or read_prices()
    return nodes * math.ceil(seconds / 3600) * prices.rate("elasticache", "nodes", node)


def cache_serverless_cost(
    moved_bytes: float, stored_bytes: float, seconds: float, prices: Prices | None = None
) -> float:
    """Return what a serverless cache costs for what it moved and held, in US dollars."""
    prices = prices or read_prices()
    stored = max(stored_bytes / BYTES_PER_GB, prices.rate("elasticache", "serverless", "least_gb"))
    units = moved_bytes / BYTES_PER_ECPU
    return stored * seconds / 3600 * prices.rate(
        "elasticache", "serverless", "per_gb_hour"
    ) + units / 1e6 * prices.rate("elasticache", "serverless", "per_million_ecpu")


def s3_class(url: str) -> S3Class | None:
    """Return the storage class of a bucket; None of what is no bucket."""
    if not url.startswith("s3://"):
        return None
    bucket = url.removeprefix("s3://").partition("/")[0]
    return "express" if bucket.endswith("--x-s3") else "standard"
