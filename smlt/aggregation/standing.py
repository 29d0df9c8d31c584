"""Who takes part in a session: what a process says of itself, and what others make of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import msgpack

from smlt.io.keys import GenerationKeys
from smlt.io.parameter_store import written_by_us


@dataclass(slots=True)
class Sign:
    """What a process says of itself while it lives."""

    rank: int
    where: str
    """Process and host, in words."""
    beat: int = 0
    operation: int = -1
    """The newest collective operation it has begun."""
    doing: str = ""
    """What that is, in words that are the same on all ranks."""
    left: bool = False

    def pack(self) -> bytes:
        return bytes(msgpack.packb(asdict(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Sign:
        with written_by_us("a sign of life"):
            return cls(**msgpack.unpackb(data))


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place in a session."""

    session: int
    keys: GenerationKeys
    nonce: str


@dataclass(slots=True)
class Standing:
    """Who takes part in a session, and in what condition."""

    formed: bool
    """All ranks have once been there together."""
    holders: dict[int, tuple[str, Sign | None]] = field(default_factory=dict)
    """Nonce and sign of life of each claimed rank; no sign when its lease has run out."""

    @property
    def live(self) -> dict[int, tuple[str, Sign]]:
        signs = ((rank, nonce, sign) for rank, (nonce, sign) in self.holders.items())
        return {rank: (nonce, sign) for rank, nonce, sign in signs if sign and not sign.left}

    @property
    def dead(self) -> list[int]:
        return [rank for rank, (_, sign) in self.holders.items() if sign is None]

    @property
    def left(self) -> list[int]:
        return [rank for rank, (_, sign) in self.holders.items() if sign and sign.left]

    def odds(self, own: Sign) -> str:
        """Say whose newest operation has the number of this rank's, and is another one."""
        for rank, (_, sign) in sorted(self.holders.items()):
            if sign and sign.operation == own.operation and sign.doing != own.doing:
                return (
                    f"ranks do different things: rank {rank} is at {sign.doing}, this one at"
                    f" {own.doing}; all have to call the same operations, with the same sizes, in"
                    " the same order"
                )
        return ""

    @property
    def verdict(self) -> str:
        """Why nothing more can come of the session; empty while something can."""
        if self.dead:
            return f"rank {self.dead[0]} died"
        if self.formed:
            return "" if self.live else "all ranks have left"
        return f"rank {self.left[0]} left before all had come" if self.left else ""
