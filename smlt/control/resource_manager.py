"""Choose workers and memory while a job trains, so that it meets its deadline and its budget.

Each plan that is tried trains real steps, whose times go to the search (``plan_search``); the plan
that it names is gone over to as long as what it promises is more than that takes. Afterwards a
change-point test watches (``drift``). Deadline and budget end the job before they are crossed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from smlt.control.drift import DriftDetector
from smlt.control.evaluation_share import EvaluationShare
from smlt.control.goals import Goals, Standing, size
from smlt.control.plan_search import Choice, PlanSearch
from smlt.control.search_grid import SearchGrid
from smlt.control.step_cost import StepCost
from smlt.control.surrogate import SampledGaussianProcess, Surrogate
from smlt.messages.job import JobSpec, ResourcePlan
from smlt.messages.worker import StepFlag, StepRecord, WorkerReport

_WARM_UP = 1  # first steps of a generation, which load and compile
_LEAST_STEPS = 5  # of one plan, to know its step time
_MOST_STEPS = 20
_PROBE_S = 2.0  # as long as they take less than this in all
_START_S = 6.0  # from one plan to the next, before any such time was seen
_SAVE_S = 2.0  # from a stop to the last rank's leaving, likewise
_MOST_PROBES = 10
_WORTH = 0.01  # expected gain below which a tuning ends
_LEAST_TRIALS = 4  # of a tuning
_KNOWS = 3  # so many plans tell whether any of them has a chance
_CHANCE = 0.02  # of meeting the goals, below which there is none
_DOUBT = 0.02  # of time and cost: a goal missed by less is not warned of
_DOUBT_OF_OTHERS = 0.1  # likewise, where steps with batches of another size are still to come
_LONGER = 0.1  # than was reckoned with, for evaluations: from there on, a plan is looked for again


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now: go over to a plan, stay with the present one for good, or stop."""

    reason: str
    """In a sentence, for the user."""
    plan: ResourcePlan | None = None
    stop: StepFlag | None = None
    at_once: bool = False
    """Stop without waiting for a step: none was taken yet by this generation."""
    saving: float = 0.0
    """Expected, as a fraction of what the rest of the job takes."""
    stays: bool = False
    """The plan is the one that runs: there is nothing to do but to say so."""


class ResourceManager:
    """Told of generations and steps, and asked what to do. It starts and stops nothing itself."""

    def __init__(
        self,
        spec: JobSpec,
        plan: ResourcePlan,
        cost: StepCost,
        *,
        notice: Callable[[str], None],
        seed: int = 0,
        trials_only: bool = False,
        surrogate: Callable[[SearchGrid], Surrogate] = SampledGaussianProcess,
    ) -> None:
        """Begin with a plan.

        With ``trials_only`` the job is there to find its plan: trials need not pay within it, and
        it stops when they are over.
        """
        self.plan = plan
        self._spec = spec
        self._goals = Goals.of(spec)
        self._notice = notice
        self._trials_only = trials_only
        self._search = PlanSearch(spec, plan, cost, seed=seed, surrogate=surrogate)
        self._times: list[float] = []
        self._skipped = 0
        self._going_over = False
        self._settled = False
        self._drift: DriftDetector | None = None
        self._changed = ""
        """Why what was measured holds no longer, in words, until it is looked into."""
        self._batch_size = spec.batch_size
        self._batches: Sequence[tuple[int, int]] = ()
        self._gradient_bytes = 0
        self._evaluations = EvaluationShare()
        self._reckoned = 0.0
        """Their fraction, as it was when the plan was looked for."""
        self._probes = 0
        self._warned = False
        self._began: float | None = None
        self._asked: float | None = None
        self._start_s, self._save_s = _START_S, _SAVE_S

    @property
    def measured(self) -> dict[ResourcePlan, float]:
        """Seconds of a step, for each plan that was tried since steps last changed."""
        return dict(self._search.measured)

    @property
    def best(self) -> Choice | None:
        """The best of them; None before the first was measured."""
        return self._search.best() if self._search.measured else None

    @property
    def is_settled(self) -> bool:
        """Whether trying is over, until steps change."""
        return self._settled

    def work(self, report: WorkerReport) -> None:
        """A generation has told how much there is to do, and of what model."""
        self._batches = report.batches
        if self._gradient_bytes and report.gradient_bytes != self._gradient_bytes:
            self._changed = "the model has grown"
        self._gradient_bytes = report.gradient_bytes
        self._search.carries(report.gradient_bytes)

    def begin(self, plan: ResourcePlan, now: float) -> None:
        """A generation is drawn with this plan."""
        if plan != self.plan:
            self._drift = None
        self.plan = plan
        self._times, self._skipped, self._going_over = [], 0, False
        self._began = now

    def end(self, now: float) -> None:
        """The generation is over, and its last rank has left."""
        if self._asked is not None:
            self._save_s = max(self._save_s, now - self._asked)
            self._asked = None

    def step(self, record: StepRecord, now: float) -> None:
        """A step was taken by the present plan."""
        if self._began is not None:
            self._start_s = 0.5 * (self._start_s + max(0.0, now - self._began - record.seconds))
            self._began = None
        is_first = record.step == self._spec.origin.trained + 1
        self._evaluations.step(record.seconds, is_first=is_first)
        whole = record.batch_size or self._batch_size
        if whole != self._batch_size:
            self._rebatch(whole)
        if record.samples < whole or record.seconds <= 0:
            return  # the short last batch of an epoch tells nothing
        if self._skipped < _WARM_UP:
            self._skipped += 1
            return
        self._times.append(record.seconds)
        del self._times[:-_MOST_STEPS]
        if self._drift is not None and self._drift.drifted(record.seconds):
            self._changed = "steps take another time than before"

    def evaluation(self, seconds: float) -> None:
        """The test split was measured, which took so long: it is taken for as many steps more."""
        self._evaluations.evaluation(seconds)
        fraction = self._evaluations.fraction
        longer = (1 + fraction) / (1 + self._reckoned) - 1
        if self._goals.limited and abs(longer) > _LONGER:
            # What was measured holds, but another part of time and money is left for steps.
            self._reckoned, self._warned = fraction, False
            self._settled, self._drift, self._probes = False, None, 0

    def failed(self, kind: str) -> ResourcePlan | None:
        """The present plan could not run for want of memory or concurrency; return what can."""
        measured = self._search.measured
        if not self._spec.adapt or not measured or self.plan in measured:
            return None
        self._search.tell_failure(self.plan, kind)
        return self._search.best().plan

    def decide(self, standing: Standing, now: float) -> Decision | None:
        """Say what to do; None means to go on. After a decision wait for its generation."""
        if self._asked is not None and self._going_over is False:
            return None  # it stops already
        standing, doubt = self._in_present_steps(standing)
        decision = self._ending(standing)
        if decision is None and self._spec.adapt and not self._going_over:
            decision = self._replan(standing)
        if decision is None and not self._going_over:
            self._look_ahead(standing, doubt)
        if decision is not None and not decision.stays:
            self._asked, self._going_over = now, decision.stop is None
        return decision

    def _ending(self, standing: Standing) -> Decision | None:
        """Stop while there is still time and money for this step and for saving."""
        starts = self._began is not None
        if starts:  # ranks that still start hear of it late, but have nothing to save
            reserve_s = self._spec.limits.stop_s
        else:
            reserve_s = self._save_s + (max(self._times[-5:]) if self._times else 0.0)
        why = self._goals.exhausted(
            standing, reserve_s, self._search.step_usd(self.plan, reserve_s)
        )
        return None if why is None else Decision(reason=why[0], stop=why[1], at_once=starts)

    def _replan(self, standing: Standing) -> Decision | None:
        if self._changed:
            self._notice(f"{self._changed}: looking for the best plan again")
            self._search.forget()
            self._begin_anew(self._times[-_LEAST_STEPS:])
        if not self._knows_enough() or self._drift is not None:
            return None
        step_s, noise = statistics.median(self._times), _relative_spread(self._times)
        if self._settled:
            self._drift = DriftDetector(step_s, max(noise, 0.03))
            return None
        over_s, rate = self._start_s + self._save_s, self._search.rate(self.plan)
        self._search.tell(
            self.plan,
            step_s,
            max(0.01, noise / math.sqrt(len(self._times))),
            self._goals.per_step(standing, over_s, rate),
        )
        left_s = standing.elapsed_s if standing.left is None else standing.left * step_s
        return self._explore(standing, left_s) or self._settle(standing, left_s)

    def _knows_enough(self) -> bool:
        count = len(self._times)
        return count >= _MOST_STEPS or (count >= _LEAST_STEPS and sum(self._times) >= _PROBE_S)

    def _begin_anew(self, times: list[float]) -> None:
        self._settled, self._changed, self._drift, self._probes = False, "", None, 0
        self._warned = False
        self._times = times

    def _rebatch(self, samples: int) -> None:
        """Steps have other batches from now on."""
        if self._spec.adapt:
            self._notice(f"a step now has {samples:,} samples: looking for the best plan again")
        self._batch_size = samples
        self._search.rebatch(samples)
        self._begin_anew([])

    def _in_present_steps(self, standing: Standing) -> tuple[Standing, float]:
        """Count what is left, evaluations too, in steps of the present batch.

        Also say how much that may be off.
        """
        ahead, before = [], self._spec.origin.trained
        for steps, samples in self._batches:
            before += steps
            if before > standing.step:
                ahead.append((min(steps, before - standing.step), samples))
        left = standing.left
        if left is None:
            return standing, _DOUBT
        if ahead:
            left = self._search.present_steps(self.plan, ahead)
        left *= 1 + self._evaluations.fraction
        are_alike = all(samples == self._batch_size for _, samples in ahead)
        standing = replace(standing, total_steps=standing.step + left)
        return standing, _DOUBT if are_alike else _DOUBT_OF_OTHERS

    def _explore(self, standing: Standing, left_s: float) -> Decision | None:
        """Try another plan if that is expected to pay for going over, and back if it is no better.

        In a tuning it pays as long as it may teach something.
        """
        among = None
        if not self._trials_only:
            over_s = self._start_s + self._save_s
            step_s = self._search.measured[self.plan]
            left_usd = left_s / step_s * self._search.step_usd(self.plan, step_s)
            steps = _WARM_UP + _LEAST_STEPS
            among = self._search.affordable(standing, left_s, left_usd, over_s, steps)
        plan, gain = self._search.next_trial(among)
        saving = min(gain, 1.0)
        pays = self._teaches(saving) if self._trials_only else saving * left_s > 2 * self._start_s
        known = plan == self.plan or plan in self._search.measured
        if self._probes >= _MOST_PROBES or known or not pays or self._is_hopeless():
            return None
        self._probes += 1
        hope = "it may meet the limits" if math.isinf(gain) else f"expected to save {gain:.0%}"
        return Decision(plan=plan, reason=f"trying {size(plan)}: {hope}", saving=saving)

    def _is_hopeless(self) -> bool:
        """Whether no plan at all can meet the goals: then that is said at once, and none tried."""
        return len(self._search.measured) >= _KNOWS and self._search.hope() < _CHANCE

    def _teaches(self, saving: float) -> bool:
        return saving > (_WORTH if len(self._search.measured) >= _LEAST_TRIALS else 0.0)

    def _settle(self, standing: Standing, left_s: float) -> Decision | None:
        best = self._search.best()
        self._settled = True
        if not best.is_safe and standing.left is not None:
            step_s = self._search.measured[best.plan]
            self._warn(best.plan, *self._outlook(standing, best.plan, step_s))
        if self._trials_only:
            return Decision(reason=f"tuned: {size(best.plan)} are best", stop=StepFlag.USER)
        saving = 1 - best.score / self._search.score(self.plan)
        # Where nothing meets the limits, the plan tried last may be far from the nearest to them.
        nearer = best.is_safe or self._uses(standing, best.plan) < self._uses(standing, self.plan)
        must = nearer and not self._keeps_limits(standing)
        if best.plan == self.plan or not (must or saving * left_s > self._start_s):
            return self._stay(best.plan)
        meets = "meets the limits" if best.is_safe else "comes nearest to the limits"
        words = f"saves {saving:.0%}" if saving > 0 else meets
        reason = f"{size(best.plan)} {words} of those tried"
        return Decision(plan=best.plan, reason=reason, saving=max(saving, 0.0))

    def _stay(self, best: ResourcePlan) -> Decision:
        """Say why the present plan is kept."""
        tried = len(self._search.measured)
        if best != self.plan:
            why = f"going over to {size(best)} would not pay any more"
        elif tried == 1:
            why = "trying others is not expected to pay"
        else:
            why = f"best of the {tried} plans tried"
        reason = f"staying with {size(self.plan)}: {why}"
        return Decision(reason=reason, plan=self.plan, stays=True)

    def _keeps_limits(self, standing: Standing) -> bool:
        """Whether the present plan, if the job goes on with it, meets deadline and budget."""
        if standing.left is None:
            return True
        step_s = self._search.measured[self.plan]
        return self._goals.met_by(*self._outlook(standing, self.plan, step_s))

    def _uses(self, standing: Standing, plan: ResourcePlan) -> float:
        """Return what part of its limits a job uses up that goes on with a measured plan."""
        return self._goals.used(*self._outlook(standing, plan, self._search.measured[plan]))

    def _outlook(
        self, standing: Standing, plan: ResourcePlan, step_s: float
    ) -> tuple[float, float]:
        """Return time and cost of the whole job if it goes on with a plan, by its step time."""
        left = standing.left or 0
        over_s = self._start_s + self._save_s
        left_usd = left * self._search.step_usd(plan, step_s) + over_s * self._search.rate(plan)
        return standing.elapsed_s + left * step_s + over_s, standing.spent_usd + left_usd

    def _look_ahead(self, standing: Standing, doubt: float) -> None:
        """Warn as soon as it is known that a goal is out of reach by a plan that is to stay."""
        stays = self._settled or not self._spec.adapt
        if stays and not self._warned and self._knows_enough() and standing.left is not None:
            step_s = statistics.median(self._times)
            time_s, usd = self._outlook(standing, self.plan, step_s)
            if not self._goals.met_by((1 - doubt) * time_s, (1 - doubt) * usd):
                self._warn(self.plan, time_s, usd)

    def _warn(self, plan: ResourcePlan, time_s: float, usd: float) -> None:
        """Say what would meet the goals that a plan does not."""
        fastest = min(self._search.measured.items(), key=itemgetter(1), default=(plan, 0.0))[0]
        has_faster = fastest != plan and self._goals.budget_usd is not None
        also = f", or more budget, for {size(fastest)}" if has_faster else ""
        if not self._spec.adapt:
            also = ", or --adapt, or other --workers and --memory-mb"
        for sentence in self._goals.missed_by(plan, time_s, usd):
            self._notice(sentence + also)
            self._warned = True


def _relative_spread(times: list[float]) -> float:
    """Standard deviation of the logarithms, from the median's absolute deviation."""
    logs = [math.log(t) for t in times]
    middle = statistics.median(logs)
    return 1.4826 * statistics.median(abs(value - middle) for value in logs)
