"""The lines that Lambda itself writes into a log stream, and what they bill."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One invocation's figures.

    duration_ms runs from the hand-over of the event to the answer, init_ms is the cold start before
    it (None when warm). Both are billed (init since August 2025), rounded up to 1 ms together.
    """

    request_id: str
    duration_ms: float
    init_ms: float | None
    memory_mb: int
    max_memory_mb: int
    status: str | None = None
    error_type: str | None = None

    @property
    def billed_ms(self) -> int:
        return math.ceil(self.duration_ms + (self.init_ms or 0.0))

    @property
    def gb_s(self) -> float:
        return self.billed_ms / 1000 * self.memory_mb / 1024

    def line(self) -> str:
        fields = [
            f"REPORT RequestId: {self.request_id}",
            f"Duration: {self.duration_ms:.2f} ms",
            f"Billed Duration: {self.billed_ms} ms",
            f"Memory Size: {self.memory_mb} MB",
            f"Max Memory Used: {self.max_memory_mb} MB",
        ]
        if self.init_ms is not None:
            fields.append(f"Init Duration: {self.init_ms:.2f} ms")
        return "\t".join([*fields, *_status(self.status, self.error_type), ""])


def start_line(request_id: str, version: str) -> str:
    return f"START RequestId: {request_id} Version: {version}"


def end_line(request_id: str) -> str:
    return f"END RequestId: {request_id}"


def init_report_line(
    init_ms: float, *, phase: str, status: str | None, error_type: str | None = None
) -> str:
    """The line about a failed init phase; phase is "init", or "invoke" for the second attempt."""
    fields = [f"INIT_REPORT Init Duration: {init_ms:.2f} ms", f"Phase: {phase}"]
    return "\t".join([*fields, *_status(status, error_type)])


def _status(status: str | None, error_type: str | None) -> list[str]:
    fields = [] if status is None else [f"Status: {status}"]
    return fields if error_type is None else [*fields, f"Error Type: {error_type}"]
