"""Turn what the ranks report into the progress that views read and the events that are kept."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from smlt.control.event_log import EventLog
from smlt.control.progress import Progress
from smlt.control.store_bill import StoreBill
from smlt.messages.worker import PhaseRecord, RankState, ShardsRecord, StepRecord, WorkerReport

# Rates are taken over this long; after this long without a step, what is waited for is named.
_RATE_S = 5.0
_STALL_S = 3.0


class ProgressFeed:
    """Feeds one job's progress. Records of steps that are taken again replace the earlier ones."""

    def __init__(
        self,
        progress: Progress,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
        stores: StoreBill | None = None,
    ) -> None:
        """Feed a progress, and keep events; ``stores`` are paid for beside the functions."""
        self.progress = progress
        self._events = events
        self._clock = clock
        self._stores = stores
        # An earlier client of the job may have spent some time already.
        self._started = clock() - progress.elapsed_s
        self._recent: deque[StepRecord] = deque()
        self._phases: Counter[str] = Counter()
        self._steps_by_rank: Counter[int] = Counter()
        self._last_step = clock()
        self.on_step: Callable[[StepRecord], None] | None = None
        self.on_work: Callable[[WorkerReport], None] | None = None
        """Told, with every generation, how much there is to do, and of what model."""
        self.on_evaluation: Callable[[float], None] | None = None
        """Told how many seconds each took."""
        self.on_phases: Callable[[int, PhaseRecord], None] | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job began, those with earlier clients included."""
        return self._clock() - self._started

    def spent_usd(self, functions_usd: float) -> float:
        """Return what all has cost, of which the functions are a part."""
        return functions_usd + (0.0 if self._stores is None else self._stores.usd)

    def notice(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.progress.notices:
            self.progress.notices.append(text)
            self._events.write("notice", text=text)

    def event(self, name: str, **fields: Any) -> None:
        self._events.write(name, **fields)

    def take(self, fields: Mapping[str, bytes]) -> None:
        """Take in one entry of the reports stream."""
        unpacked = msgpack.unpackb(fields["report"])
        report = WorkerReport.from_dict(unpacked)
        if report.kind == "steps":
            for record in report.steps:
                self._take_step(StepRecord.from_dict(record))
        elif report.kind == "phases":
            for record in report.steps:
                self._take_phases(report.rank, PhaseRecord.from_dict(record))
        elif report.kind == "shards":
            self._take_shards(*(ShardsRecord.from_dict(record) for record in report.steps))
        elif report.kind == "evaluation":
            self.progress.evaluation = report.metrics
            self.event(
                "evaluation",
                step=report.step,
                epoch=report.epoch,
                metrics=report.metrics,
                seconds=round(report.seconds, 6),
            )
            if self.on_evaluation is not None:
                self.on_evaluation(report.seconds)
        elif report.kind == "plan":
            self.progress.total_steps = report.total_steps
            if self._stores is not None:
                self._stores.carries(report.gradient_bytes, self.progress.size)
            if self.on_work is not None:
                self.on_work(report)
        elif report.kind == "notice":
            self.notice(report.text)

    def _take_step(self, record: StepRecord) -> None:
        progress = self.progress
        progress.step, progress.epoch = record.step, record.epoch
        progress.loss, progress.metrics = record.loss, record.metrics
        self._last_step = self._clock()
        if self._stores is not None:
            self._stores.step(progress.size)
        self._recent.append(record)
        self._rate()
        self.event("step", **record.to_dict())
        if self.on_step is not None:
            self.on_step(record)

    def _take_phases(self, rank: int, record: PhaseRecord) -> None:
        """Keep what a rank says of a step, and add it to the totals of a typical rank."""
        traced = {"spans": record.spans} if record.spans else {}
        sent = {"requests": record.requests} if record.requests else {}
        told = {name: round(seconds, 6) for name, seconds in record.phases.items()}
        seconds = round(record.seconds, 6)
        self.event(
            "phases", rank=rank, step=record.step, seconds=seconds, phases=told, **sent, **traced
        )
        self._phases.update(record.phases)
        self._steps_by_rank[rank] += 1
        share = max(self._steps_by_rank.values()) / self._steps_by_rank.total()
        self.progress.phases = {name: share * total for name, total in self._phases.items()}
        if self.on_phases is not None:
            self.on_phases(rank, record)

    def _take_shards(self, record: ShardsRecord) -> None:
        self.progress.shards = record.text
        self.event("shards", **record.to_dict())

    def _rate(self) -> None:
        """Take the rates from the steps' own times: records arrive in batches."""
        seconds = sum(record.seconds for record in self._recent)
        while len(self._recent) > 1 and seconds > _RATE_S:
            seconds -= self._recent.popleft().seconds
        self.progress.steps_per_s = len(self._recent) / seconds
        samples = sum(record.samples for record in self._recent)
        self.progress.samples_per_s = samples / seconds

    def rest(self) -> None:
        """Forget the rates: a generation has ended, and time passes without steps."""
        self._recent.clear()
        self._last_step = self._clock()

    def wait(self) -> None:
        """All is trained, and no worker is there: what comes next is more data."""
        progress = self.progress
        progress.state, progress.ranks = "waiting", []
        self.event("waiting", step=progress.step, gb_s=progress.billed_gb_s)

    def pulse(self, ranks: list[RankState], bill: tuple[float, float]) -> None:
        """Bring what changes by itself up to date."""
        progress, now = self.progress, self._clock()
        progress.ranks = ranks
        progress.elapsed_s = now - self._started
        progress.billed_gb_s, progress.cost_usd = bill[0], self.spent_usd(bill[1])
        stalled = progress.state == "running" and now - self._last_step > _STALL_S
        waits = [f"rank {r.rank} waits for {r.waiting_for}" for r in ranks if r.waiting_for]
        progress.stalled = "; ".join(waits) if stalled else ""
