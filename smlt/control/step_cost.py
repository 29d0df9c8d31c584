"""What a step of any plan costs: memory for the time it takes, and what the stores add."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from smlt.control.cost_model import (
    BYTES_PER_ECPU,
    Architecture,
    S3Class,
    cache_serverless_cost,
    lambda_cost,
    s3_class,
    s3_cost,
)
from smlt.control.prices import Prices
from smlt.messages.job import ResourcePlan

# How gradients are cut (``aggregation.shard_plan``): in whole cache lines, and in no more shards
# than are worth their messages.
_LINE_BYTES = 64
_WORTHWHILE_BYTES = 64 << 10
# Requests to S3 as a parameter store, as counted in jobs (``tests/jobs/test_s3_jobs.py``).
# Listings are billed as PUTs are.
_PUTS_OF_A_FRAME = 2  # itself, and the notice that it is there
_LISTINGS = 3.0  # of a stream until what is waited for is there (``io.s3_polling``)
_OF_A_WORKER = (3.0, 3.0)  # a second, PUTs and GETs: lease, reports, control, what is read of it
_OF_A_CLIENT = 3.0  # listings a second


def wire_share(wire_dtype: str | None) -> float:
    """Return how much of a float32 gradient's bytes travels."""
    return 0.5 if wire_dtype in ("bf16", "fp16") else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraffic:
    """What one step moves through the parameter store, all ranks together."""

    frames: float
    """Put by ranks: contributions, and means."""
    fetches: float
    waits: float
    """Of a rank for its means, and of an owner for contributions."""
    uploaded: float
    downloaded: float
    """Bytes, as in `uploaded`."""

    @classmethod
    def of(
        cls,
        workers: int,
        gradient_bytes: float,
        shard_bytes: float,
        *,
        aggregators: int | None = None,
        wire_dtype: str | None = None,
    ) -> StepTraffic:
        """Count the frames of a step: contributions to the shards' owners, and the means.

        An owner puts no contribution to its own shard and fetches no mean of it.
        """
        if aggregators is None:
            worthwhile = min(_WORTHWHILE_BYTES, shard_bytes)
            aggregators = max(1, int(gradient_bytes // worthwhile))
        owners = min(aggregators, workers)
        shards = _shards(gradient_bytes, shard_bytes, owners)
        others = workers - 1
        means = 1 if others else 0
        wire_bytes = gradient_bytes * wire_share(wire_dtype)
        return cls(
            frames=shards * (others + means),
            fetches=2 * shards * others,
            waits=(workers + owners) * means,
            uploaded=wire_bytes * (others + means),
            downloaded=2 * wire_bytes * others,
        )


def _shards(gradient_bytes: float, shard_bytes: float, owners: int) -> int:
    """As many as keep the owners equally busy, and none larger than that; of float32."""
    largest = shard_bytes // _LINE_BYTES * _LINE_BYTES
    rounds = max(1, math.ceil(gradient_bytes / (owners * largest)))
    lines = math.ceil(gradient_bytes / (owners * rounds) / _LINE_BYTES)
    return max(1, math.ceil(gradient_bytes / (max(1, lines) * _LINE_BYTES)))


StoreKind = Literal["none", "node", "serverless", "s3", "s3express"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterStorePrice:
    """What a parameter store adds to the price of a step; `none` is a server that is there anyway.

    A node is spread evenly over time here, though its last hour is billed whole.
    """

    kind: StoreKind = "none"
    node: str = "cache.r7g.large"
    nodes: int = 1

    @classmethod
    def of(cls, url: str, node: str | None) -> ParameterStorePrice:
        """Return the price of the store, or several with commas between them, behind a URL.

        ``node`` is the type of node that each is at ElastiCache; None is a server that is there.
        """
        bucket = s3_class(url)
        if bucket is not None:
            return cls(kind="s3express" if bucket == "express" else "s3")
        if node is None:
            return cls()
        return cls(kind="node", node=node, nodes=1 + url.count(","))

    def per_second(self, workers: int, prices: Prices) -> float:
        """Dollars for being there, and for what so many workers ask of S3 without a step."""
        if self.kind == "node":
            return self.nodes * prices.rate("elasticache", "nodes", self.node) / 3600
        if self.kind == "serverless":
            return cache_serverless_cost(0, 0, 1, prices)
        if self.kind == "none":
            return 0.0
        puts, gets = (workers * each for each in _OF_A_WORKER)
        return s3_cost(self._class, puts=puts + _OF_A_CLIENT, gets=gets, prices=prices)

    def per_step(self, traffic: StepTraffic, prices: Prices) -> float:
        if self.kind in ("s3", "s3express"):
            return s3_cost(
                self._class,
                puts=_PUTS_OF_A_FRAME * traffic.frames + _LISTINGS * traffic.waits,
                gets=traffic.fetches,
                uploaded=traffic.uploaded,
                downloaded=traffic.downloaded,
                prices=prices,
            )
        if self.kind == "serverless":
            moved = traffic.uploaded + traffic.downloaded
            units = moved / BYTES_PER_ECPU / 1e6
            return units * prices.rate("elasticache", "serverless", "per_million_ecpu")
        return 0.0

    @property
    def _class(self) -> S3Class:
        return "express" if self.kind == "s3express" else "standard"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Prices a step of any plan: memory for the time it takes, and what the store adds."""

    prices: Prices
    architecture: Architecture = "x86_64"
    store: ParameterStorePrice = ParameterStorePrice()
    gradient_bytes: float = 0.0
    """Of the model in float32; 0 as long as that is not known."""
    shard_bytes: float = 4 << 20
    aggregators: int | None = None
    """As many own shards, of plans that do not say so themselves."""
    wire_dtype: str = "fp32"
    """Likewise, how gradients travel."""

    def per_second(self, plan: ResourcePlan) -> float:
        """Dollars for a second in which all workers run."""
        return plan.workers * lambda_cost(
            1000.0, plan.memory_mb, 0, architecture=self.architecture, prices=self.prices
        ) + self.store.per_second(plan.workers, self.prices)

    def moving(self, plan: ResourcePlan) -> float:
        """Dollars for what a step moves through the parameter store, however long it takes."""
        if not self.gradient_bytes:
            return 0.0
        return self.store.per_step(self.traffic(plan), self.prices)

    def traffic(self, plan: ResourcePlan) -> StepTraffic:
        """Return what a step of that plan moves."""
        return StepTraffic.of(
            plan.workers,
            self.gradient_bytes,
            self.shard_bytes,
            aggregators=plan.aggregators or self.aggregators,
            wire_dtype=plan.wire_dtype or self.wire_dtype,
        )

    def per_step(self, plan: ResourcePlan, step_s: float) -> float:
        """Dollars for a step that takes so long."""
        return step_s * self.per_second(plan) + self.moving(plan)

    def start(self, workers: int) -> float:
        """Dollars for the invocations of a generation, apart from their time."""
        return workers * self.prices.rate("lambda", "per_request")
