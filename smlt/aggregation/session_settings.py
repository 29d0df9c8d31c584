"""What the ranks of a session agree on, and how long each of them waits."""

from __future__ import annotations

from dataclasses import dataclass

from smlt.config.sharding import lease
from smlt.errors import ConfigError

# Longer than any session: the entries of one that died without a successor go by themselves.
SESSION_S = 30 * 86400.0
_STORE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What all ranks of a session must agree on."""

    world_size: int
    shard_bytes: int
    aggregators: int | None = None
    lanes: int = 2
    """Reductions under way at the same time."""
    wire_dtype: str = "fp32"
    tries_plans: bool = False
    """Whether the first averages of a layout find out which shards and owners do best."""

    def __post_init__(self) -> None:
        owners = self.world_size if self.aggregators is None else self.aggregators
        if self.world_size < 1 or not 1 <= owners <= self.world_size:
            raise ConfigError(
                f"world_size={self.world_size} with aggregators={self.aggregators} cannot be: give"
                " at least one rank, and 1 to world_size aggregators"
            )
        if self.shard_bytes < 64 or self.lanes < 1:
            raise ConfigError("a shard has at least 64 bytes (shard_mb=0.0001), lanes is 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Time limits of a session, in seconds."""

    step_s: float = 120.0
    """How long one wait for another rank may last."""
    lease_s: float = 10.0
    """A process that has not been heard of for this long is dead."""
    heartbeat_s: float = 1.0
    store_s: float = 15.0

    @classmethod
    def of(cls, url: str, step_s: float, lease_s: float | None) -> SessionLimits:
        """Return the limits of a session through a store; a lease of None is as suits it."""
        lease_s = lease(url) if lease_s is None else lease_s
        return cls(
            step_s=step_s, lease_s=lease_s, heartbeat_s=lease_s / 10, store_s=min(_STORE_S, step_s)
        )
