"""Search the best of several models within one budget: successive halving over epochs.

All candidates are trained for a few epochs, the better ones for more, and the best to the end.
Each is a job of its own, which is paused and gone on with, so that no step is taken twice. What a
run does not spend of its share goes to those that come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from smlt.config import TrainConfig
from smlt.config.resume import ResumeConfig
from smlt.config.values import Duration
from smlt.continuation import Continuation
from smlt.control import artifact_manager
from smlt.control.progress import Progress, Summary
from smlt.control.task_scheduler import PAUSED
from smlt.errors import ConfigError, SmltError, TaskError, UserError
from smlt.session import Session
from smlt.worker.task_loader import find_class
from smlt.worker.task_params import parse_params

_WITHOUT = ("steps", "until", "patience", "watch", "inline")


@dataclass(slots=True)
class Candidate:
    """One of the models, and how it has done so far."""

    params: tuple[str, ...]
    """``NAME=VALUE`` each, for the task's constructor."""
    job_id: str = ""
    epochs: int = 0
    """That it has trained, all of them whole."""
    score: float | None = None
    """The metric after these; None before, and of one that failed."""
    spent_usd: float = 0.0
    seconds: float = 0.0
    summary: Summary | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rung:
    """How many candidates go on, and to which epoch."""

    candidates: int
    epochs: int


def rungs(candidates: int, epochs: int, factor: int = 2) -> list[Rung]:
    """Return the ladder of a search: each rung has 1/factor of the candidates and factor × epochs.

    Where there are too few epochs for that, the first rungs are left out.
    """
    count = 1
    while factor ** (count - 1) < candidates:
        count += 1
    ladder = [
        Rung(math.ceil(candidates / factor**r), round(epochs / factor ** (count - 1 - r)))
        for r in range(count)
    ]
    possible = [rung for rung in ladder if rung.epochs >= 1]
    first = replace(possible[0], candidates=candidates)
    return [first, *(b for a, b in pairwise(possible) if b.epochs > a.epochs)]


class Search:
    """Runs the jobs of all candidates, one after the other, and returns the summary of the best."""

    def __init__(
        self, config: TrainConfig, candidates: Sequence[Sequence[str]], *, factor: int = 2
    ) -> None:
        """Take the settings that all candidates share.

        Args:
            config: ``budget`` and ``deadline`` are for all of them together, ``epochs`` for the
                best, and ``keep_best`` names the metric by which they are compared.
            candidates: parameters of each, as ``NAME=VALUE``; they go before those of the config.
            factor: of the candidates, one in so many goes on.

        Raises:
            ConfigError: the search would have no end, or nothing to compare.
        """
        for name in _WITHOUT:
            if getattr(config, name) not in (None, False):
                raise ConfigError(f"{config.where(name)} does not go with a search over epochs.")
        if config.keep_best is None or config.watched is None:
            raise ConfigError(
                "Name the metric by which candidates are compared with --keep-best, as in "
                "--keep-best accuracy."
            )
        if len(candidates) < 2 or factor < 2:
            raise ConfigError("A search needs two candidates, and a factor of 2 or more.")
        self.candidates = [Candidate(tuple(params)) for params in candidates]
        self.notices: list[str] = []
        self._config = config
        self._by = config.watched
        self._rungs = rungs(len(candidates), config.epochs or 1, factor)
        self._running: Session | Continuation | None = None
        self._stop_requested = False

    @property
    def progress(self) -> Progress:
        """Of the job that runs now."""
        return Progress() if self._running is None else self._running.progress

    @property
    def spent_usd(self) -> float:
        return sum(candidate.spent_usd for candidate in self.candidates)

    @property
    def metric(self) -> str:
        """By which candidates are compared."""
        return self._by.metric

    @property
    def ranking(self) -> list[Candidate]:
        """All of them: who got furthest first, and the better of those before the others."""
        ranked = self._ranked(self.candidates, len(self.candidates))
        return sorted(ranked, key=lambda candidate: -candidate.epochs)

    @property
    def best(self) -> Candidate | None:
        """The one that got furthest, and of those the best; None before the first evaluation."""
        first = self.ranking[0]
        return first if first.score is not None else None

    async def train(self) -> Summary:
        """Search to the end.

        Raises:
            UserError: a setting, the task or the data cannot be used.
            SmltError: no candidate could be trained.
        """
        self._check_params()
        racing = self.candidates
        for number, rung in enumerate(self._rungs):
            racing = self._ranked(racing, rung.candidates) if number else racing
            for place, candidate in enumerate(racing):
                later = self._rungs[number + 1 :]
                await self._run(candidate, rung, len(racing) - place, later)
                if self._stop_requested:
                    return self._summary("stopped", "the search was stopped")
            racing = [candidate for candidate in racing if candidate.score is not None]
            if not racing:
                break
        return self._summary("completed", "the search is complete")

    async def request_stop(self) -> None:
        """End cleanly: the job that runs stops after its step, and no other begins."""
        self._stop_requested = True
        if self._running is not None:
            await self._running.request_stop()

    async def stop_now(self) -> None:
        """End everything at once."""
        self._stop_requested = True
        if self._running is not None:
            await self._running.stop_now()

    def _check_params(self) -> None:
        target = artifact_manager.locate(self._config.target, Path.cwd())
        task = find_class(target.reference, target.root)
        for candidate in self.candidates:
            parse_params(task, self._params(candidate))

    def _params(self, candidate: Candidate) -> tuple[str, ...]:
        own = {text.partition("=")[0] for text in candidate.params}
        shared = [text for text in self._config.params if text.partition("=")[0] not in own]
        return (*shared, *candidate.params)

    async def _run(
        self, candidate: Candidate, rung: Rung, runs: int, later: Sequence[Rung]
    ) -> None:
        """Train a candidate up to a rung, for its share of what is left of budget and deadline.

        ``runs`` of equal length are left of the rung, this one among them.
        """
        stretch, epoch = rung.epochs - candidate.epochs, rung.epochs
        work = runs * stretch
        for after in later:
            work += after.candidates * (after.epochs - epoch)
            epoch = after.epochs
        self._running = self._lead(candidate, rung, stretch / work)
        try:
            summary = await self._running.train()
        except (UserError, TaskError):
            raise
        except SmltError as error:
            summary = self._running.progress.summary("failed", str(error))
        candidate.job_id, candidate.summary = summary.job_id, summary
        candidate.spent_usd, candidate.seconds = summary.cost_usd, summary.seconds
        arrived = summary.state == "completed" or summary.message == PAUSED
        if self._stop_requested and not arrived:
            return  # it stands where it was
        candidate.score = summary.metrics.get(self._by.metric) if arrived else None
        candidate.epochs = rung.epochs if arrived else candidate.epochs

    def _lead(self, candidate: Candidate, rung: Rung, share: float) -> Session | Continuation:
        config = self._config
        budget = deadline = None
        if config.budget is not None:
            budget = candidate.spent_usd + share * (config.budget - self.spent_usd)
        if config.deadline is not None:
            spent_s = sum(each.seconds for each in self.candidates)
            deadline = Duration(candidate.seconds + share * (config.deadline - spent_s))
        pause = None if rung.epochs == config.epochs else rung.epochs
        if candidate.job_id:
            changes = ResumeConfig(budget=budget, deadline=deadline, pause_after=pause)
            return Continuation(config.run_dir, candidate.job_id, changes=changes)
        own = replace(config, params=self._params(candidate), budget=budget, deadline=deadline)
        return Session(own, pause_after=pause)

    def _ranked(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        sign = 1 if self._by.lower_is_better else -1

        def rank(candidate: Candidate) -> float:
            score = candidate.score
            return math.inf if score is None or math.isnan(score) else sign * score

        return sorted(candidates, key=rank)[:count]

    def _summary(self, state: str, message: str) -> Summary:
        best = self.best
        if best is None or best.summary is None:
            raise SmltError(
                f"no candidate was trained for {self._rungs[0].epochs} epochs: "
                + "; ".join(
                    f"{' '.join(c.params)}: {c.summary.message}"
                    for c in self.candidates
                    if c.summary is not None
                )
            )
        return replace(
            best.summary,
            state=state,
            message=f"{message}: {' '.join(best.params)} is best",
            cost_usd=self.spent_usd,
            seconds=sum(candidate.seconds for candidate in self.candidates),
        )
