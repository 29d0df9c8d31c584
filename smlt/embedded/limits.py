"""Lambda's quotas, in one place, so that a test can make one small enough to trip."""

from dataclasses import dataclass

MB = 1024 * 1024
MB_PER_VCPU = 1769


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the embedded Lambda allows; the defaults are those AWS documents (November 2026)."""

    account_concurrency: int = 1000
    init_s: float = 10.0
    idle_s: float = 300.0
    """How long an unused environment stays warm; AWS says no number, minutes are usual."""
    retry_delays_s: tuple[float, ...] = (60.0, 120.0)
    """Pause before the first and the second retry of an asynchronous event."""
    event_age_s: float = 21600.0
    sync_payload_bytes: int = 6_291_556
    async_payload_bytes: int = 1_048_576
    request_bytes: int = 70_167_211
    """Body of CreateFunction and UpdateFunctionCode, base64 included."""
    zipped_bytes: int = 50 * MB
    unzipped_bytes: int = 250 * MB
    environment_bytes: int = 4096
    open_files: int = 1024
    memory_mb: tuple[int, int] = (128, 10_240)
    timeout_s: tuple[int, int] = (1, 900)
    ephemeral_mb: tuple[int, int] = (512, 10_240)

    @property
    def unreserved_floor(self) -> int:
        """Concurrency that reservations must leave to all other functions."""
        return min(100, self.account_concurrency // 10)


def vcpus(memory_mb: int) -> float:
    """CPU share of a function: one vCPU per 1,769 MB."""
    return memory_mb / MB_PER_VCPU
