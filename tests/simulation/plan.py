"""What a seed stands for: a job, the world that it runs in, and what goes wrong there."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from smlt.config.sharding import AUTO
from smlt.messages.job import EXACT, JobSpec, Limits
from tests.simulation import walk
from tests.simulation.network import Latency

CALM_S = 25.0
"""From here on nothing new goes wrong."""
REST_S = 400.0
"""By here the job must have ended, and everything be at rest."""
STOPS = {"stop", "stop_outside", "stop_now", "stop_now_outside"}
CLIENTS = {"client_dies", "client_freezes", "rival"}
SERVERS = {"restart", "evict", "full", "hang", "refuse", "garble", "babble"}
FAULTS = (
    "kill", "kill", "kill", "kill_all", "freeze", "cut", "partition", "objects",
    "rot", "rot", "rot", "rot_next", "logs", "lose", "lose", "plan", "plan",
    *sorted(STOPS), *sorted(CLIENTS), *sorted(SERVERS),
)  # fmt: skip
FLIPS = 0.04
"""Share of the jobs in which a bit of a worker's memory is flipped."""
GONE = 0.03
"""Share of those whose cloud ends for good: the embedded one may be killed."""
TRYING = 0.15
"""Share of those whose first steps try a wire of 16 bits, and of those that try other plans."""
LARGE = 150_000
"""Elements of a gradient that is worked on in threads."""
DATA, START = "data/manifest.json", "weights/start.safetensors"
"""Keys of what a user has put into the object store."""
SIZES_MB = (128, 256)


@dataclass(frozen=True)
class Plan:
    """A seed in full. Every field is drawn; a test may replace some."""

    seed: int
    workers: int
    aggregators: int | None
    servers: int
    carries: bool
    """Whether small frames travel in their notices."""
    size: int
    starts_from: bool
    """Whether the weights to begin with are given."""
    tests: int
    """Test samples; without any there are no evaluations."""
    until: float | None
    keep_best: bool
    patience: int | None
    determinism: str
    wire_dtype: str
    shard_bytes: int
    tries_plans: bool
    """Whether the first steps find out how to cut the gradient."""
    epochs: int
    checkpoint_s: float
    digest_steps: int
    limits: Limits
    latency: Latency
    slow_share: float
    twice: float
    late: float
    undelivered: float
    throttled: float
    unlike: float
    """Share of environments whose processor computes other bits."""
    forgetful: float
    """Share of warm environments that are gone when they are wanted."""
    refused_mb: int | None
    """A size that the service makes no function of."""
    managed: float
    """How likely the manager is to want something each time it is asked."""
    calm_from: float
    heir_after: float | None
    """Seconds after its client's death when another one comes; None: nobody does."""
    resumes: bool
    """Whether a job that was stopped is gone on with."""
    faults: tuple[tuple[float, str, int], ...]
    """When, what, and a number that decides the rest."""

    @classmethod
    def draw(cls, seed: int) -> Plan:
        rng = random.Random(seed)
        plan = cls._draw(seed, rng)
        if rng.random() < FLIPS:
            return plan.with_a_flipped_bit(rng)
        if rng.random() < GONE:
            gone = (rng.uniform(0, CALM_S / 5), "cloud_gone", 0)
            plan = replace(plan, faults=tuple(sorted([*plan.faults, gone])))
        if plan.determinism != EXACT and rng.random() < TRYING:
            plan = replace(plan, wire_dtype=AUTO)
        return replace(plan, tries_plans=rng.random() < TRYING)

    @classmethod
    def _draw(cls, seed: int, rng: random.Random) -> Plan:
        workers = rng.choice([1, 2, 2, 3, 3, 4, 5])
        tests = rng.choice([0, 0, 5])
        determinism = rng.choice(["fast", "fast", EXACT])
        size = rng.choice([16, 48, 100] * 8 + [LARGE])
        return cls(
            seed=seed,
            workers=workers,
            aggregators=rng.choice([None, 1, workers]),
            servers=rng.choice([1, 1, 1, 2, 3]),
            carries=rng.random() < 0.5,
            size=size,
            starts_from=rng.random() < 0.3,
            tests=tests,
            until=rng.choice([None, 55.0]) if tests else None,
            keep_best=bool(tests) and rng.random() < 0.5,
            patience=rng.choice([None, 50]) if tests else None,
            determinism=determinism,
            wire_dtype="fp32" if determinism == EXACT else rng.choice(["fp32", "bf16", "fp16"]),
            shard_bytes=1 << 20 if size == LARGE else rng.choice([64, 128, 1 << 20]),
            tries_plans=False,
            epochs=2 if size == LARGE else rng.choice([2, 4, 6]),
            checkpoint_s=rng.choice([60.0, 0.3, 0.1]),
            digest_steps=rng.choice([0, 1, 3]),
            limits=_limits(rng),
            latency=rng.choice([Latency(), Latency(high=0.02), Latency(tail_share=0.01, tail=0.4)]),
            slow_share=rng.choice([0.0, 0.0, 0.3]),
            twice=rng.choice([0.0, 0.0, 0.4]),
            late=rng.choice([0.0, 0.0, 0.1]),
            undelivered=rng.choice([0.0, 0.0, 0.1]),
            throttled=rng.choice([0.0, 0.0, 0.2]),
            unlike=rng.choice([0.0] * 7 + [0.3]),
            forgetful=rng.choice([0.0, 0.0, 0.5]),
            refused_mb=rng.choice([None, SIZES_MB[1]]),
            managed=rng.choice([0.0, 0.0, 0.0, 0.1]),
            calm_from=CALM_S,
            heir_after=rng.choice([None, 0.0, 1.0, 20.0]),
            resumes=rng.random() < 0.5,
            faults=_faults(rng),
        )

    def with_a_flipped_bit(self, rng: random.Random) -> Plan:
        """Have the memory of one rank damaged, and nothing else go wrong: all depends on that."""
        return replace(
            self,
            workers=max(2, self.workers),
            digest_steps=1,
            until=None,
            patience=None,
            checkpoint_s=60.0,
            epochs=6,
            late=0.0,
            undelivered=0.0,
            unlike=0.0,
            managed=0.0,
            limits=replace(self.limits, function_s=900.0),
            faults=((rng.uniform(0.3, 0.8), "flip", rng.getrandbits(32)),),
        )

    @property
    def harms(self) -> set[str]:
        return {kind for _, kind, _ in self.faults}

    @property
    def is_peaceful(self) -> bool:
        """Whether nothing happens that could end a generation before its time."""
        return not (self.faults or self.late or self.undelivered or self.managed or self.unlike)

    @property
    def lets_ranks_be_heard(self) -> bool:
        """Whether what a rank puts reaches the others in time while their generation lasts."""
        harmless = STOPS | CLIENTS | {"plan", "logs", "lose"}
        return self.harms <= harmless and self.limits.function_s > REST_S

    @property
    def spares_the_ranks(self) -> bool:
        """Whether every rank lives until it has saved, however long the object store is out."""
        harmless = {"objects", "stop", "stop_outside", "plan", "logs"}
        return self.harms <= harmless and self.limits.function_s > REST_S and not self.managed

    @property
    def spec(self) -> JobSpec:
        return JobSpec(
            target="tests.simulation.walk:Walk",
            params={
                "size": self.size,
                "tests": self.tests,
                "fractions": self.determinism == EXACT,
            },
            epochs=self.epochs,
            batch_size=walk.BATCH,
            seed=self.seed % 7,
            data=DATA,
            init_from=START if self.starts_from else None,
            until=None if self.until is None else f"height>={self.until}",
            keep_best="height" if self.keep_best else None,
            patience=self.patience,
            shard_bytes=self.shard_bytes,
            aggregators=self.aggregators,
            wire_dtype=self.wire_dtype,
            tries_plans=self.tries_plans,
            determinism=self.determinism,
            checkpoint_s=self.checkpoint_s,
            digest_steps=self.digest_steps,
            limits=self.limits,
        )


def _limits(rng: random.Random) -> Limits:
    return Limits(
        lease_s=3.0,
        heartbeat_s=0.5,
        start_s=8.0,
        load_s=15.0,
        step_s=6.0,
        save_s=8.0,
        objects_s=90.0,
        client_lease_s=2.0,
        orphan_s=2.0,
        store_s=3.0,
        hold_s=2.0,
        stop_s=5.0,
        function_s=rng.choice([900.0, 900.0, 12.0]),
        handover_s=rng.choice([2.0, 9.5]),
    )


def _faults(rng: random.Random) -> tuple[tuple[float, str, int], ...]:
    count = rng.choice([0, 1, 1, 2, 2, 3, 4])
    found = [
        (
            rng.choice([rng.uniform(0, 2), rng.uniform(0, CALM_S)]),
            rng.choice(FAULTS),
            rng.getrandbits(32),
        )
        for _ in range(count)
    ]
    return tuple(sorted(found))
