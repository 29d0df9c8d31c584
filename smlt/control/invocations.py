"""The invocations of a job, followed through the function's log: prints, endings and the bill.

Lambda writes START, END and REPORT lines between the worker's own; the request id in them says
which invocation, and so which rank, a line belongs to. A REPORT for a rank that has not said that
it left tells of its death long before its lease runs out. Lines of different streams may arrive
seconds apart, so from time to time the log is read again from further back.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smlt.control.bill import PLAIN, Bill, FunctionKind
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
_LATE_MS = 60_000
"""By so much lines may be late."""
_LOOK_BACK_S = 10.0
"""So often the log is read again for late ones."""


@dataclass(slots=True)
class Invocation:
    """One invocation: what is known of it from our side and from its log.

    An event that is delivered twice gives two of one request id, in two log streams or one after
    the other in one.
    """

    request_id: str
    generation: int
    rank: int
    memory_mb: int
    sent: float
    function: str = ""
    stream: str = ""
    """The log stream, and so the environment, that it runs in; empty before it does."""
    ended: bool = False
    """Lambda has reported its end."""
    ended_ms: float = math.inf
    """When, by Lambda's clock."""
    lost: bool = False
    """Its event was never delivered, it seems; no end is waited for."""
    presumed_ms: float | None = None
    """What it is billed as long as no report of its end has come."""
    billed_ms: int = 0
    used_mb: int = 0
    error_type: str = ""
    """Lambda's word for an abnormal end: Runtime.ExitError, Runtime.OutOfMemory, timeout, …"""
    reason: str = ""
    """What Lambda says of the process's end: "Runtime exited with error: signal: killed"."""
    last_line: str = ""
    """The last that the worker itself wrote."""

    @property
    def started(self) -> bool:
        """Whether its event has been delivered, as far as the log tells."""
        return bool(self.stream)

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


class Invocations:
    """All invocations of a job, with a log file for each rank."""

    def __init__(
        self,
        log_folder: Path,
        clock: Callable[[], float] = time.monotonic,
        prices: Prices | None = None,
        kind: FunctionKind = PLAIN,
        earlier: tuple[float, float] = (0.0, 0.0),
        since_ms: int = 0,
    ) -> None:
        """Follow a log from a moment on.

        Args:
            log_folder: gets a file for each rank.
            clock: seconds.
            prices: by default the table that comes with the package.
            kind: what the functions' price depends on; by default the plainest ones.
            earlier: what an earlier client of the job was billed: GB-seconds and dollars.
            since_ms: Unix time; what is older in the log is of other jobs.
        """
        self._bill = Bill(prices or read_prices(), kind, earlier)
        self._folder = log_folder
        self._clock = clock
        self._by_id: dict[str, list[Invocation]] = {}
        self._current: dict[str, str] = {}
        self._seen: set[tuple[str, int, str, int]] = set()
        self._first_ms = self._latest_ms = since_ms
        self._looked_back = clock()

    def sent(
        self, request_id: str, generation: int, rank: int, memory_mb: int, function: str = ""
    ) -> None:
        """Note an event that Lambda has accepted."""
        self._add(
            Invocation(request_id, generation, rank, memory_mb, self._clock(), function=function)
        )

    def called(self, billed_ms: int, memory_mb: int) -> None:
        """Bill a call that is no worker's."""
        self._bill.charge(memory_mb, billed_ms)

    def of(self, generation: int) -> list[Invocation]:
        """Return the invocations of one generation."""
        every = (i for deliveries in self._by_id.values() for i in deliveries)
        return [invocation for invocation in every if invocation.generation == generation]

    @property
    def unreported(self) -> set[str]:
        """The functions that have begun an invocation whose end Lambda has not reported."""
        every = (one for deliveries in self._by_id.values() for one in deliveries)
        return {one.function for one in every if one.stream and not one.ended and not one.lost}

    @property
    def late_since_ms(self) -> int:
        """From when on the log has to be read again for lines that came late."""
        return max(self._first_ms, self._latest_ms - _LATE_MS)

    def since_ms(self) -> int:
        """Return from when on to read the log again: timestamps have only milliseconds."""
        now = self._clock()
        if now - self._looked_back < _LOOK_BACK_S:
            return self._latest_ms
        self._looked_back = now
        return self.late_since_ms

    def presume_ended(
        self, generation: int, lost: Callable[[Invocation], bool] = lambda _: False
    ) -> None:
        """Bill, as if they ended now, those of a generation whose report has not come yet.

        An event that seems to be lost costs nothing, and no report of it is waited for.
        """
        now = self._clock()
        for one in self.of(generation):
            if not one.ended and one.presumed_ms is None:
                one.lost = lost(one)
                one.presumed_ms = 0.0 if one.lost else 1000 * max(0.0, now - one.sent)
                self._bill.end(one.memory_mb, one.sent, one.presumed_ms)

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
        late = self.late_since_ms
        self._seen = {seen for seen in self._seen if seen[1] >= late}
        for rank, lines in written.items():
            with (self._folder / f"rank-{rank}.log").open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def bill(self) -> tuple[float, float]:
        """Return GB-seconds and US dollars so far, at Lambda's prices."""
        return self._bill.total(self._clock())

    def _add(self, invocation: Invocation) -> None:
        self._by_id.setdefault(invocation.request_id, []).append(invocation)
        self._bill.begin(invocation.memory_mb, invocation.sent)

    def _end(self, invocation: Invocation) -> None:
        """Bill an invocation that is over by what Lambda says of it."""
        memory_mb, billed_ms = invocation.memory_mb, invocation.billed_ms
        if invocation.presumed_ms is None:
            self._bill.end(memory_mb, invocation.sent, billed_ms)
        else:
            self._bill.correct(memory_mb, invocation.presumed_ms, billed_ms)

    def _attribute(self, event: LogEvent) -> Invocation | None:
        start = _START.match(event.message)
        if start is not None:
            self._current[event.stream] = start[1]
        report = _REPORT.match(event.message)
        if report is not None:
            self._current[event.stream] = report["id"]
        invocation = self._delivery(event, begins=start is not None)
        if report is not None:
            if invocation is not None and not invocation.ended:
                invocation.ended_ms = event.timestamp_ms
                _note_report(invocation, report, event.message)
                self._end(invocation)
        elif invocation is not None and not _SUMMARY.match(event.message):
            _note_line(invocation, event.message.strip())
        return invocation

    def _delivery(self, event: LogEvent, *, begins: bool) -> Invocation | None:
        """Return which delivery of an event a line is of; ``begins`` where it is its first."""
        stream = event.stream
        deliveries = self._by_id.get(self._current.get(stream, ""))
        if not deliveries:
            return None
        in_stream = [i for i in deliveries if i.stream == stream]
        # A first line that came late is older than the end that it belongs to.
        if in_stream and not (begins and in_stream[-1].ended_ms <= event.timestamp_ms):
            return in_stream[-1]
        [first, *_] = deliveries
        if first.started:
            first = Invocation(
                first.request_id,
                first.generation,
                first.rank,
                first.memory_mb,
                self._clock(),
                function=first.function,
            )
            self._add(first)
        first.stream = stream
        return first


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
