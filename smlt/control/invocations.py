"""The invocations of a job, followed through the function's log: prints, endings and the bill.

Lambda writes START, END and REPORT lines between the worker's own; the request id in them says
which invocation, and so which rank, a line belongs to. A REPORT for a rank that has not said that
it left tells of its death long before its lease runs out.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smlt.control.cost_model import gb_seconds, lambda_cost
from smlt.control.lambda_client import LogEvent
from smlt.control.prices import Prices, read_prices

_START = re.compile(r"START RequestId: (\S+)")
_REPORT = re.compile(
    r"REPORT RequestId: (?P<id>\S+).*?Billed Duration: (?P<billed>\d+) ms"
    r".*?Memory Size: (?P<size>\d+) MB.*?Max Memory Used: (?P<used>\d+) MB",
    re.DOTALL,
)
_STATUS = re.compile(r"Status: (\S+)")
_ERROR_TYPE = re.compile(r"Error Type: (\S+)")
_RUNTIME_ERROR = re.compile(r"RequestId: \S+ Error: (.+)")
# What Lambda's Python writes when a handler raises; a logger's own lines have tabs there.
_RAISED = re.compile(r"\[ERROR\] (\w[\w.]*): (.+)")
_LARGEST_MB = 10240
_SUMMARY = re.compile(r"(START|END|REPORT) RequestId: ")


@dataclass(slots=True)
class Invocation:
    """One invocation: what is known of it from our side and from its log."""

    request_id: str
    generation: int
    rank: int
    memory_mb: int
    sent: float
    ended: bool = False
    billed_ms: int = 0
    used_mb: int = 0
    error_type: str = ""
    """Lambda's word for an abnormal end: Runtime.ExitError, Runtime.OutOfMemory, timeout, …"""
    reason: str = ""
    """What Lambda says of the process's end: "Runtime exited with error: signal: killed"."""
    last_line: str = ""
    """The last that the worker itself wrote."""

    @property
    def out_of_memory(self) -> bool:
        """Whether it was killed for its memory; Lambda does not always say so in words."""
        if "OutOfMemory" in self.error_type:
            return True
        return bool(self.error_type) and self.used_mb >= self.memory_mb

    @property
    def obituary(self) -> str:
        """How it died, in a sentence that says what to do about it."""
        if self.out_of_memory:
            bigger = min(2 * self.memory_mb, _LARGEST_MB)
            advice = f"try --memory-mb {bigger}"
            if self.memory_mb >= _LARGEST_MB:
                advice = "Lambda has no larger functions, so try more workers or a smaller batch"
            return f"rank {self.rank} ran out of its {self.memory_mb} MB of memory: {advice}"
        words = self.reason or self.error_type
        if self.last_line and not words.startswith(self.error_type):
            words += f" (its last line: {self.last_line})"
        return f"rank {self.rank} ended before its time: {words}"


@dataclass(slots=True)
class _Running:
    """Invocations of one size that are not over: many of them, asked for often."""

    count: int = 0
    sent: float = 0.0
    """Sum of the times at which they were sent."""

    def add(self, sent: float) -> None:
        self.count += 1
        self.sent += sent

    def remove(self, sent: float) -> None:
        self.count -= 1
        self.sent -= sent

    def billed_ms(self, now: float) -> float:
        return max(0.0, self.count * now - self.sent) * 1000


class Invocations:
    """All invocations of a job, with a log file for each rank."""

    def __init__(
        self,
        log_folder: Path,
        clock: Callable[[], float] = time.monotonic,
        prices: Prices | None = None,
        earlier: tuple[float, float] = (0.0, 0.0),
        since_ms: int = 0,
    ) -> None:
        """Follow a log from a moment on.

        Args:
            log_folder: gets a file for each rank.
            clock: seconds.
            prices: by default the table that comes with the package.
            earlier: what an earlier client of the job was billed: GB-seconds and dollars.
            since_ms: Unix time; what is older in the log is of other jobs.
        """
        self._ended = earlier
        self._folder = log_folder
        self._prices = prices or read_prices()
        self._clock = clock
        self._by_id: dict[str, Invocation] = {}
        self._running: dict[int, _Running] = defaultdict(_Running)
        self._current: dict[str, str] = {}
        self._seen: set[tuple[str, int, str, int]] = set()
        self._latest_ms = since_ms

    def sent(self, request_id: str, generation: int, rank: int, memory_mb: int) -> None:
        """Note an event that Lambda has accepted."""
        now = self._clock()
        self._by_id[request_id] = Invocation(request_id, generation, rank, memory_mb, now)
        self._running[memory_mb].add(now)

    def called(self, billed_ms: int, memory_mb: int) -> None:
        """Bill a call that is no worker's."""
        self._charge(billed_ms, memory_mb)

    def of(self, generation: int) -> list[Invocation]:
        """Return the invocations of one generation."""
        return [i for i in self._by_id.values() if i.generation == generation]

    @property
    def since_ms(self) -> int:
        """From when on the log has to be read again: timestamps have only milliseconds."""
        return self._latest_ms

    def take(self, events: list[LogEvent]) -> None:
        """Take in log lines, some of which may have been seen before."""
        repeats: dict[tuple[str, int, str], int] = {}
        written: dict[int, list[str]] = {}
        for event in events:
            plain = (event.stream, event.timestamp_ms, event.message)
            repeats[plain] = repeats.get(plain, 0) + 1
            identity = (*plain, repeats[plain])
            if identity in self._seen:
                continue
            self._seen.add(identity)
            self._latest_ms = max(self._latest_ms, event.timestamp_ms)
            invocation = self._attribute(event)
            if invocation is not None:
                written.setdefault(invocation.rank, []).append(event.message.rstrip("\n"))
        self._seen = {seen for seen in self._seen if seen[1] >= self._latest_ms}
        for rank, lines in written.items():
            with (self._folder / f"rank-{rank}.log").open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def bill(self) -> tuple[float, float]:
        """Return GB-seconds and US dollars so far, at Lambda's prices."""
        now = self._clock()
        amount, dollars = self._ended
        for memory_mb, running in self._running.items():
            billed = running.billed_ms(now)
            amount += gb_seconds(billed, memory_mb)
            dollars += lambda_cost(billed, memory_mb, running.count, prices=self._prices)
        return amount, dollars

    def _end(self, invocation: Invocation) -> None:
        """Bill an invocation that is over by what Lambda says of it."""
        self._running[invocation.memory_mb].remove(invocation.sent)
        self._charge(invocation.billed_ms, invocation.memory_mb)

    def _charge(self, billed: int, memory_mb: int) -> None:
        amount, dollars = self._ended
        self._ended = (
            amount + gb_seconds(billed, memory_mb),
            dollars + lambda_cost(billed, memory_mb, 1, prices=self._prices),
        )

    def _attribute(self, event: LogEvent) -> Invocation | None:
        start = _START.match(event.message)
        if start is not None:
            self._current[event.stream] = start[1]
        invocation = self._by_id.get(self._current.get(event.stream, ""))
        report = _REPORT.match(event.message)
        if report is not None:
            invocation = self._by_id.get(report["id"])
            if invocation is not None:
                is_over = invocation.ended
                _note_report(invocation, report, event.message)
                if not is_over:
                    self._end(invocation)
        elif invocation is not None and not _SUMMARY.match(event.message):
            _note_line(invocation, event.message.strip())
        return invocation


def _note_line(invocation: Invocation, line: str) -> None:
    runtime, raised = _RUNTIME_ERROR.search(line), _RAISED.match(line)
    if runtime is not None:
        invocation.reason = runtime[1]
    elif raised is not None:
        invocation.error_type, invocation.reason = raised[1], f"{raised[1]}: {raised[2]}"
    elif line:
        invocation.last_line = line


def _note_report(invocation: Invocation, report: re.Match[str], line: str) -> None:
    invocation.ended = True
    invocation.billed_ms = int(report["billed"])
    invocation.used_mb = int(report["used"])
    status, error = _STATUS.search(line), _ERROR_TYPE.search(line)
    if error is not None:
        invocation.error_type = error[1]
    elif status is not None:
        invocation.error_type = status[1]
