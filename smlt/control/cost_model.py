"""What a job costs at Lambda's prices, from a dated table."""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

Architecture = Literal["x86_64", "arm64"]

MB_PER_GB = 1024  # Lambda's gigabyte: 1,769 MB are 1.7275 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class LambdaPrices:
    """Rates in US dollars, of one region on one day."""

    region: str
    as_of: datetime.date
    source: str
    per_request: float
    per_gb_second: dict[str, float]
    """By architecture."""
    ephemeral_per_gb_second: float
    ephemeral_free_mb: int


@cache
def read_prices(path: Path | None = None) -> LambdaPrices:
    """Read a price table; without a path, the one that comes with the package."""
    text = (path or files("smlt.control") / "prices.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    rates = table.pop("lambda")
    return LambdaPrices(**table, **rates)


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
    prices: LambdaPrices | None = None,
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
    extra_mb = max(0, ephemeral_mb - prices.ephemeral_free_mb)
    return (
        gb_seconds(billed_ms, memory_mb) * prices.per_gb_second[architecture]
        + gb_seconds(billed_ms, extra_mb) * prices.ephemeral_per_gb_second
        + requests * prices.per_request
    )
