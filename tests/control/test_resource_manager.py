"""What the resource manager decides, on jobs played on a clock of their own at Lambda's prices."""

import random
import re
from dataclasses import replace

import pytest

from smlt.control.cost_model import lambda_cost
from smlt.control.drift import DriftDetector
from smlt.control.goals import Goals, Standing, in_words
from smlt.control.prices import read_prices
from smlt.control.resource_manager import ResourceManager
from smlt.control.skopt_surrogate import SkoptGaussianProcess
from smlt.control.step_cost import StepCost
from smlt.control.surrogate import SampledGaussianProcess
from smlt.messages.job import JobSpec, ResourcePlan
from smlt.messages.worker import StepFlag, StepRecord, WorkerReport

FIRST = ResourcePlan(workers=4, memory_mb=1769)
START_S = 4.0
SAVE_S = 1.0


def dollars(plan, seconds):
    """From Lambda's price list, not by the code under test."""
    return plan.workers * plan.memory_mb / 1024 * 0.0000166667 * seconds


def law(plan, scale=1.0):
    """64 virtual workers of 0.25 s on one vCPU; a fifth of it is serial; a store all share."""
    vcpus = plan.memory_mb / 1769
    speed = vcpus if vcpus < 1 else 1 / (0.2 + 0.8 / vcpus)
    pieces = -(-64 // plan.workers)
    return scale * 0.25 * pieces / speed + exchange(plan)


def exchange(plan):
    if plan.aggregators is None:
        return 0.1 + 0.015 * (plan.workers - 1)
    # Gradients so large that an eighth of the ranks as owners, and half the bytes, do better.
    n, m = plan.workers, plan.aggregators
    wire = 0.5 if plan.wire_dtype == "bf16" else 1.0
    return wire * (0.2 * (1 + n / m) / 2 + 0.03 * (n - 1)) + 0.02 * m


class Job:
    """Plays a whole job: steps with noise, starts and saves that take time, all of it billed."""

    def __init__(
        self,
        steps=2000,
        seed=0,
        slow=lambda job, plan: 1.0,
        oom=lambda plan: False,
        batches=(),
        first=FIRST,
        evaluations=(0, 0.0),
        **goal,
    ):
        """``batches`` are numbers of steps with the samples that each of them has.

        ``evaluations`` say after how many steps one follows, and the seconds of one worker.
        """
        adapt, options = goal.pop("adapt", True), goal.pop("options", {})
        self.spec = JobSpec(
            target="t:T", batch_size=64, virtual_workers=64, most_workers=64, adapt=adapt, **goal
        )
        self.notices, self.decisions, self.tried = [], [], [first]
        self.stays, self.noticed_s = [], []
        self.manager = ResourceManager(
            self.spec,
            first,
            StepCost(prices=read_prices()),
            notice=self._notice,
            **options,
        )
        self.rng, self.steps = random.Random(seed), steps
        self.batches = [batch for count, batch in batches for _ in range(count)]
        self.report = WorkerReport(rank=0, kind="plan", batches=list(batches), gradient_bytes=400)
        self.slow, self.oom = slow, oom
        self.evaluations = evaluations
        self.now = self.spent = 0.0
        self.step, self.plan, self.stopped = 0, first, None

    def _notice(self, text):
        self.notices.append(text)
        self.noticed_s.append(self.now)

    def run(self):
        self._begin(self.plan)
        while self.step < self.steps and self.stopped is None:
            batch = self.batches[self.step] if self.batches else 64
            # The exchange takes as long for every batch.
            seconds = law(self.plan, self.slow(self, self.plan))
            seconds += (batch / 64 - 1) * (law(self.plan) - exchange(self.plan))
            seconds *= self.rng.lognormvariate(0, 0.03)
            self._pass(seconds)
            self.step += 1
            record = StepRecord(
                step=self.step,
                epoch=0,
                loss=1.0,
                samples=batch,
                seconds=seconds,
                batch_size=batch,
            )
            self.manager.step(record, self.now)
            every, alone_s = self.evaluations
            if every and self.step % every == 0:
                self._pass(alone_s / self.plan.workers)
                self.manager.evaluation(alone_s / self.plan.workers)
            decision = self.manager.decide(
                Standing(
                    elapsed_s=self.now,
                    spent_usd=self.spent,
                    step=self.step,
                    total_steps=self.steps,
                ),
                self.now,
            )
            if decision is not None:
                self._carry_out(decision)
        return self

    def _carry_out(self, decision):
        if decision.stays:
            assert decision.plan == self.plan
            self.stays.append(decision.reason)
            return
        self.decisions.append(decision)
        self._pass(SAVE_S)
        self.manager.end(self.now)
        if decision.stop is not None:
            self.stopped = decision.stop
            return
        self._begin(decision.plan)
        if self.oom(decision.plan):
            self._pass(START_S)
            self.manager.end(self.now)
            self._begin(self.manager.failed("memory"))

    def _begin(self, plan):
        self.plan = plan
        self.tried.append(plan)
        self.manager.begin(plan, self.now)
        if not self.oom(plan):
            self._pass(START_S)
            self.manager.work(self.report)

    def _pass(self, seconds):
        self.now += seconds
        self.spent += dollars(self.plan, seconds)


def every_plan():
    from smlt.control.plan_grid import plan_grid

    grid = plan_grid(JobSpec(target="t:T", virtual_workers=64, most_workers=64), FIRST)
    return [ResourcePlan(**grid.plan(i)) for i in range(len(grid))]


def fixed(plan, steps):
    seconds = START_S + steps * law(plan) + SAVE_S
    return seconds, dollars(plan, seconds)


@pytest.mark.parametrize("seed", range(3))
def test_a_deadline_is_met_at_little_more_than_the_least_cost(seed):
    job = Job(deadline_s=1800, seed=seed).run()
    assert (job.step, job.stopped) == (2000, None)
    assert job.now <= 1800
    best = min(usd for time, usd in (fixed(p, 2000) for p in every_plan()) if time <= 1800)
    assert job.spent <= 1.35 * best
    # The plan that it began with would have been late.
    assert fixed(FIRST, 2000)[0] > 1800


@pytest.mark.parametrize("seed", range(3))
def test_within_a_budget_the_job_is_done_much_sooner(seed):
    budget = 1.6
    job = Job(budget_usd=budget, seed=seed).run()
    assert (job.step, job.stopped) == (2000, None)
    assert job.spent <= budget
    best = min(time for time, usd in (fixed(p, 2000) for p in every_plan()) if usd <= budget)
    assert job.now <= 1.5 * best
    assert job.now < 0.5 * fixed(FIRST, 2000)[0]


@pytest.mark.parametrize("budget", [0.01, 0.1])
@pytest.mark.parametrize("adapt", [False, True])
def test_the_budget_is_not_crossed_by_more_than_a_step(budget, adapt):
    job = Job(budget_usd=budget, adapt=adapt).run()
    assert job.stopped == StepFlag.BUDGET
    assert job.spent <= budget + dollars(job.plan, law(job.plan))
    assert job.spent > 0.5 * budget


@pytest.mark.parametrize("budget", [0.1, 0.3])
def test_a_budget_out_of_reach_is_not_spent_on_the_plan_that_was_tried_last(budget):
    adapting = Job(steps=1500, budget_usd=budget).run()
    alone = Job(steps=1500, budget_usd=budget, adapt=False).run()
    assert adapting.stopped == alone.stopped == StepFlag.BUDGET
    # The first plan is near the cheapest: beside trials, as many steps as with it can be had.
    assert adapting.step > 0.85 * alone.step
    assert "comes nearest to the limits of those tried" in adapting.decisions[-2].reason


def test_the_deadline_stops_the_job():
    job = Job(deadline_s=200, adapt=False).run()
    assert job.stopped == StepFlag.DEADLINE
    assert 150 < job.now <= 200 + law(FIRST)


def test_what_is_out_of_reach_is_said_early_with_what_would_meet_it():
    job = Job(deadline_s=300).run()
    early = [d for d in job.decisions if d.stop is None]
    assert len(early) <= 11
    assert any("deadline of 5 min is out of reach" in n and "--deadline" in n for n in job.notices)


def test_a_fixed_plan_is_left_alone():
    assert Job(steps=300, deadline_s=1e5, adapt=False).run().decisions == []


def test_a_plan_without_enough_memory_is_gone_back_from_and_not_tried_again():
    job = Job(deadline_s=3600, oom=lambda plan: plan.memory_mb < 1769).run()
    assert (job.step, job.stopped) == (2000, None)
    failed = [plan for plan in job.tried if plan.memory_mb < 1769]
    assert len(failed) <= 1


def test_a_job_that_has_little_left_does_not_try_other_plans_and_says_so():
    job = Job(steps=12, deadline_s=3600).run()
    assert job.decisions == []
    assert job.stays == ["staying with 4 workers of 1,769 MB: trying others is not expected to pay"]


@pytest.mark.parametrize("goal", [{"deadline_s": 1800}, {"budget_usd": 1.6}])
def test_why_the_last_plan_is_kept_is_said_once(goal):
    job = Job(**goal).run()
    said = [reason for reason in job.stays if "plans tried" in reason]
    back = [d for d in job.decisions if "of those tried" in d.reason]
    assert len(said) + len(back) == 1


def test_steps_that_become_slower_for_good_are_planned_anew():
    job = Job(steps=4000, deadline_s=6000, slow=lambda job, plan: 1.0 if job.step < 1500 else 1.5)
    job.run()
    assert any("looking for the best plan again" in notice for notice in job.notices)
    assert job.step == 4000


def test_one_slow_step_is_not_a_drift():
    steady = DriftDetector(1.0, 0.03)
    rng = random.Random(1)
    assert not any(steady.drifted(rng.lognormvariate(0, 0.03)) for _ in range(20_000))
    assert not steady.drifted(60.0)
    assert not any(steady.drifted(rng.lognormvariate(0, 0.03)) for _ in range(100))


@pytest.mark.parametrize("factor", [1 / 1.2, 1.2, 1.5, 3.0])
def test_a_lasting_change_of_a_fifth_is_found_within_some_steps(factor):
    detector, rng = DriftDetector(1.0, 0.05), random.Random(2)
    found = [detector.drifted(factor * rng.lognormvariate(0, 0.05)) for _ in range(20)]
    assert any(found)


def test_the_price_of_a_second_is_that_of_the_list():
    plan = ResourcePlan(workers=3, memory_mb=2048)
    cost = StepCost(prices=read_prices()).per_second(plan)
    assert cost == pytest.approx(dollars(plan, 1))
    assert cost == pytest.approx(lambda_cost(3000, 2048, 0))


def test_a_start_that_eats_the_budget_is_ended_at_once():
    manager = Job(budget_usd=0.02).manager
    manager.begin(FIRST, 0.0)
    standing = {"elapsed_s": 80.0, "step": 0, "total_steps": None}
    assert manager.decide(Standing(spent_usd=0.005, **standing), 80.0) is None
    decision = manager.decide(Standing(spent_usd=0.0198, **standing), 81.0)
    assert (decision.stop, decision.at_once) == (StepFlag.BUDGET, True)


@pytest.mark.parametrize("surrogate", [SampledGaussianProcess, SkoptGaussianProcess])
def test_a_tuning_tries_plans_names_one_of_the_best_and_stops(surrogate):
    job = Job(steps=400, options={"trials_only": True, "surrogate": surrogate}).run()
    assert job.stopped == StepFlag.USER
    assert job.step < 400
    assert 3 <= len(job.manager.measured) <= 11
    best, every = job.manager.best.plan, sorted(every_plan(), key=value)
    # Where there is no limit to break, it may also be one that was not tried.
    assert value(best) <= 1.1 * min(value(plan) for plan in job.manager.measured)
    assert value(best) <= 1.25 * value(every[0])
    assert value(best) < 0.9 * value(FIRST)


def value(plan):
    """Time times cost: what is least where there is neither deadline nor budget."""
    return dollars(plan, law(plan)) * law(plan)


DOUBLING = ((1200, 64), (600, 128), (300, 256))


def test_a_batch_that_doubles_twice_is_planned_anew_each_time_and_at_once():
    job = Job(steps=2100, batches=DOUBLING, seed=1).run()
    assert [notice for notice in job.notices if "samples" in notice] == [
        f"a step now has {samples} samples: looking for the best plan again"
        for samples in (128, 256)
    ]
    # Neither is taken for a drift: the batch is told with the steps.
    assert not any("another time" in notice for notice in job.notices)
    tried = {plan for plan in job.tried if plan != FIRST}
    assert tried
    # The larger the batch, the more there is to share.
    assert job.plan.workers * job.plan.memory_mb > FIRST.workers * FIRST.memory_mb


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_deadline_takes_later_batches_into_account(seed):
    best = 0.0
    for plan in every_plan():
        seconds = sum(
            count * (exchange(plan) + batch / 64 * (law(plan) - exchange(plan)))
            for count, batch in DOUBLING
        )
        if START_S + seconds + SAVE_S <= 2400:
            usd = dollars(plan, START_S + seconds + SAVE_S)
            best = min(best or usd, usd)
    job = Job(steps=2100, batches=DOUBLING, deadline_s=2400, seed=seed).run()
    assert (job.step, job.stopped) == (2100, None)
    assert job.now <= 2400
    assert job.spent <= 1.35 * best
    assert not any("out of reach" in notice for notice in job.notices)


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_aggregators_and_the_wire_dtype_are_chosen_too(seed):
    first = replace(FIRST, aggregators=4, wire_dtype="fp32")
    job = Job(
        steps=2000,
        first=first,
        tunes_aggregators=True,
        tunes_wire_dtype=True,
        deadline_s=5000,
        seed=seed,
    ).run()
    assert job.step == 2000
    assert job.now <= 5000
    # Half the bytes do better whatever the rest of the plan.
    assert job.plan.wire_dtype == "bf16"
    assert any("on the wire" in decision.reason for decision in job.decisions)

    def cost(plan):
        seconds, usd = fixed(plan, 2000)
        return usd if seconds <= 5000 else float("inf")

    plans = [
        replace(plan, aggregators=m, wire_dtype=dtype)
        for plan in every_plan()
        for m in {1, plan.workers, -(-plan.workers // 2), -(-plan.workers // 4)}
        for dtype in ("fp32", "bf16")
    ]
    assert job.spent <= 1.25 * min(map(cost, plans))


def test_a_model_that_grows_is_planned_anew():
    job = Job(steps=900, batches=[(900, 64)])

    def grown(job, plan):
        if job.step == 400:
            job.report = replace(job.report, gradient_bytes=4000)
            job._begin(plan)  # growth ends a generation
        return 1.0 if job.step < 400 else 2.0

    job.slow = grown
    job.run()
    assert "the model has grown: looking for the best plan again" in job.notices


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize(
    ("goal", "missed"),
    [({"deadline_s": 300}, "the deadline of 5 min"), ({"budget_usd": 0.2}, "the budget of $0.2")],
)
def test_a_goal_out_of_reach_is_told_while_most_of_it_is_left(adapt, goal, missed):
    told = []
    job = Job(steps=20_000, adapt=adapt, **goal)
    job.manager._notice = lambda text: told.append((job.now, job.spent, text))
    job.run()
    assert job.stopped in (StepFlag.DEADLINE, StepFlag.BUDGET)
    said = [(now, spent, text) for now, spent, text in told if "out of reach" in text]
    now, spent, text = said[0]
    assert text.startswith(missed)
    assert "would do" in text
    assert ("--adapt" in text) != adapt
    assert now < 0.5 * goal.get("deadline_s", 1e9)
    assert spent < 0.5 * goal.get("budget_usd", 1e9)
    assert len(said) <= 2  # once, and once more if steps change


def test_evaluations_are_counted_in_what_is_left():
    """Steps alone take 420 s of the 600 s, with ten evaluations of 40 s it is more than 800 s."""
    job = Job(steps=100, deadline_s=600, adapt=False, evaluations=(10, 160.0)).run()
    late = START_S + 100 * law(FIRST) + 10 * 40
    [said], [said_s] = job.notices, job.noticed_s
    minutes = re.search(r"the deadline of 10 min is out of reach: .* need about (\d+) min", said)
    assert late - 60 < 60 * int(minutes[1]) < late + 60
    assert said_s < 100  # when the first of them was over


def test_a_plan_is_chosen_that_is_in_time_with_its_evaluations():
    job = Job(deadline_s=2400, evaluations=(50, 180.0)).run()
    assert (job.step, job.stopped) == (2000, None)
    assert job.now <= 2400


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (45.4, "45 s"),
        (119.9, "120 s"),
        (120, "2 min"),
        (150, "2 min 30 s"),
        (719.6, "12 min"),
        (3599.7, "1 h 0 min"),
        (5400, "1 h 30 min"),
    ],
)
def test_times_are_said_as_exactly_as_they_matter(seconds, words):
    assert in_words(seconds) == words


def test_a_deadline_that_is_missed_by_little_is_told_from_the_time_that_is_needed():
    [said] = Goals(deadline_s=150).missed_by(FIRST, 155, 0.0)
    assert "the deadline of 2 min 30 s is out of reach" in said
    assert "need about 2 min 35 s" in said


def test_a_goal_that_is_met_is_not_warned_of():
    job = Job(steps=300, adapt=False, deadline_s=1600).run()
    assert (job.step, job.notices) == (300, [])
