"""Jobs through their generations: real scheduler and workers on one loop, over memory stores."""

import asyncio
import gc
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from smlt.control.job import Job, this_client
from smlt.control.prices import read_prices
from smlt.control.progress import Progress
from smlt.control.resource_manager import Decision, ResourceManager
from smlt.control.run_folder import RunFolder
from smlt.control.step_cost import StepCost
from smlt.control.stragglers import MULTIPLE
from smlt.control.summary import summarise
from smlt.control.task_scheduler import Outcome
from smlt.errors import StoreError, StoreUnreachableError
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.memory_contents import forget
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.weights import read_weights, replace_weights
from smlt.messages.job import JobSpec, Position, ResourcePlan
from smlt.worker import numerics
from smlt.worker.step_reports import StepReports
from smlt.worker.trainer import Trainer
from tests.control.town import LIMIT_S, QUICK, Town, in_one_process


@pytest.fixture
def town(tmp_path):
    return lambda **settings: Town(tmp_path, **settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    async def scenario():
        quiet = Town(tmp_path_factory.mktemp("quiet"))
        outcome = await quiet.run()
        assert (outcome.status, outcome.generations) == ("completed", 1)
        return await quiet.weights()

    return asyncio.run(scenario())


def test_job_of_one_generation_leaves_its_model_and_a_checkpoint_of_the_last_step(town):
    async def scenario():
        job = town()
        outcome = await job.run()
        kept = await checkpoint.read(job.objects, "drift", outcome.newest)
        return (
            outcome,
            kept.tensors["w"].numpy(),
            await read_weights(job.objects, JobObjects("drift").model),
        )

    outcome, saved, model = asyncio.run(scenario())
    assert outcome.newest.step == 36
    assert (saved == model["w"].numpy()).all()


@pytest.mark.parametrize(("workers", "aggregators"), [(1, None), (2, 1), (3, 2), (5, None), (8, 3)])
def test_weights_are_those_of_one_process_to_rounding(town, workers, aggregators):
    async def scenario():
        job = town(workers=workers, aggregators=aggregators, shard_bytes=256)
        await job.run()
        found = await read_weights(job.objects, JobObjects("drift").model)
        return found["w"].numpy()

    np.testing.assert_allclose(asyncio.run(scenario()), in_one_process(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_killed_at_random_moments_leave_no_trace_in_the_weights(town, undisturbed, seed):
    rng = random.Random(seed)

    async def scenario():
        job = town()

        async def killer(scheduler):
            for _ in range(rng.randint(1, 3)):
                at = job.cloud.computed + rng.randint(1, 60)
                await job.until(lambda at=at: job.cloud.computed >= at)
                killed.append(job.cloud.kill(rng.randrange(3)))

        killed = []
        outcome = await job.run(killer)
        return outcome, await job.weights(), killed

    outcome, weights, killed = asyncio.run(scenario())
    assert outcome.status == "completed"
    assert any(killed)
    assert outcome.generations > 1
    assert weights == undisturbed


def test_all_ranks_killed_at_once_begin_again_from_the_newest_checkpoint(town, undisturbed):
    async def scenario():
        job = town(checkpoint_s=0.05)

        async def killer(scheduler):
            await job.until(lambda: job.cloud.computed >= 120)
            for rank in range(3):
                job.cloud.kill(rank)

        outcome = await job.run(killer)
        return outcome, await job.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.generations == 2
    assert weights == undisturbed


def test_store_that_loses_everything_costs_a_generation_and_no_bits(town, undisturbed):
    async def scenario():
        job = town()

        async def flush(scheduler):
            await job.until(lambda: job.cloud.computed >= 60)
            kept = dict(job.objects._contents.objects)
            forget(job.name)
            job.objects._contents.objects.update(kept)

        outcome = await job.run(flush)
        return outcome, await job.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.generations == 2
    assert weights == undisturbed


def test_job_goes_on_beyond_the_functions_time_limit(town, undisturbed):
    async def scenario():
        # Every generation hands over after its first steps.
        job = town(function_s=8, limits=replace(QUICK, handover_s=8))
        outcome = await job.run()
        kept = [key for key in job.objects._contents.objects if key.endswith("manifest.json")]
        return outcome, await job.weights(), kept

    outcome, weights, kept = asyncio.run(scenario())
    assert (outcome.status, outcome.failure) == ("completed", None)
    assert outcome.generations > 3
    assert weights == undisturbed
    # None of these generations is long enough for a checkpoint on the way.
    assert len(kept) == JobSpec(target="").keep_checkpoints


def test_damaged_checkpoint_is_named_and_the_one_before_it_taken(town, undisturbed):
    async def scenario():
        job = town(checkpoint_s=0.02)
        objects = job.objects._contents.objects
        manifests = lambda: sorted(k for k in objects if k.endswith("manifest.json"))  # noqa: E731

        async def strike(scheduler):
            await job.until(lambda: len(manifests()) >= 2)
            for rank in range(3):
                job.cloud.kill(rank)
            await job.until(lambda: not job.cloud.running)
            part = manifests()[-1].replace("manifest.json", "part-00001.safetensors")
            data, _ = await job.objects.get(part)
            await job.objects.put(part, data[:-1] + bytes([data[-1] ^ 1]))
            damaged.append(part)

        damaged = []
        outcome = await job.run(strike)
        return outcome, await job.weights(), damaged, job.progress.notices

    outcome, weights, [part], notices = asyncio.run(scenario())
    assert outcome.status == "completed"
    assert any(f"{part} is damaged" in notice for notice in notices), notices
    assert weights == undisturbed


def test_host_that_computes_otherwise_costs_a_fast_job_its_promise(town, monkeypatch):
    hosts = itertools.chain([{"torch threads": 1}], itertools.repeat({"torch threads": 2}))
    monkeypatch.setattr(numerics, "of_this_host", lambda: next(hosts))

    async def scenario():
        job = town(workers=2, determinism="fast")
        return await job.run(), job.progress.notices

    outcome, notices = asyncio.run(scenario())
    assert outcome.status == "completed"
    [notice] = notices
    assert "torch threads 2 instead of 1; the promise of the same bits lapses" in notice


def test_flipped_bit_in_a_workers_memory_stops_the_job(town):
    async def scenario():
        job = town(epochs=500, digest_steps=5)

        async def flip(scheduler):
            await job.until(lambda: job.cloud.computed >= 60)
            [victim] = [
                t
                for t in gc.get_objects()
                if type(t) is Trainer
                and t._generation.task == replace(t._generation.task, rank=1)
                and t._generation.store.url == job.store.url
            ]
            victim._task.w.view(np.uint32)[17] ^= 1

        return await job.run(flip)

    outcome = asyncio.run(scenario())
    assert (outcome.status, outcome.failure.kind, outcome.generations) == ("failed", "diverged", 1)
    assert "rank 1 differs from the other ranks in m, w" in outcome.message or (
        "rank 1 differs from the other ranks in w" in outcome.message
    )
    # What the ranks held then is not saved.
    assert outcome.newest.step == 0


def test_plan_changes_the_number_of_workers_and_their_memory(town):
    plans = [(5, 128), (2, 256), (1, 256), (4, 128)]

    async def scenario():
        job = town(epochs=20)

        async def replan(scheduler):
            for workers, memory_mb in plans:
                at = job.cloud.computed + 40
                await job.until(lambda at=at: job.cloud.computed >= at)
                await scheduler.request_plan(ResourcePlan(workers=workers, memory_mb=memory_mb))
                await job.until(lambda w=workers: job.progress.workers == w)

        outcome = await job.run(replan)
        found = await read_weights(job.objects, JobObjects("drift").model)
        return outcome, found["w"].numpy(), job

    outcome, weights, job = asyncio.run(scenario())
    drawn = [(e["workers"], e["memory_mb"]) for e in job.events("generation")]
    assert drawn == [(3, 128), *plans]
    assert (outcome.status, outcome.failure, outcome.generations) == ("completed", None, 5)
    assert job.cloud.made == ["f-128", "f-256"]
    assert [len(e["ranks"]) for e in job.events("roster")] == [3, 5, 2, 1, 4]
    np.testing.assert_allclose(weights, in_one_process(steps=120), rtol=2e-4, atol=2e-5)


def test_plan_that_comes_while_a_generation_starts_ends_it_after_a_step(town):
    async def scenario():
        job = town()

        async def replan(scheduler):
            await scheduler.request_plan(ResourcePlan(workers=2, memory_mb=128))
            await job.until(lambda: job.cloud.invoked)
            await scheduler.request_plan(ResourcePlan(workers=4, memory_mb=128))

        return await job.run(replan), job

    outcome, job = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 2)
    assert [event["workers"] for event in job.events("generation")] == [2, 4]


def test_plan_whose_function_cannot_be_made_leaves_the_memory_as_it_was(town, undisturbed):
    async def scenario():
        job = town()

        async def replan(scheduler):
            await job.until(lambda: job.cloud.computed >= 40)
            job.cloud.refuses_functions = True
            await scheduler.request_plan(ResourcePlan(workers=3, memory_mb=10240))

        outcome = await job.run(replan)
        return outcome, await job.weights(), job.progress.notices

    outcome, weights, notices = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 2)
    assert weights == undisturbed
    assert any("going on with 128 MB as before" in notice for notice in notices)


def test_plan_of_more_workers_than_virtual_ones_is_refused(town):
    async def scenario():
        scheduler = await town().scheduler()
        await scheduler.request_plan(ResourcePlan(workers=17, memory_mb=128))

    with pytest.raises(ValueError, match="17 workers, where 1 to 16"):
        asyncio.run(scenario())


def test_generation_goes_on_without_a_rank_that_never_starts(town):
    async def scenario():
        job = town(shard_bytes=256, limits=replace(QUICK, start_s=3.0))
        job.cloud.undelivered = {1}
        await job.run()
        found = await read_weights(job.objects, JobObjects("drift").model)
        return found["w"].numpy(), job.events("roster")

    weights, rosters = asyncio.run(scenario())
    assert [event["ranks"] for event in rosters] == [[0, 2]]
    np.testing.assert_allclose(weights, in_one_process(), rtol=2e-5, atol=2e-6)


def test_rank_whose_event_was_lost_is_sent_for_again(town, undisturbed):
    async def scenario():
        job = town(limits=replace(QUICK, start_s=6.0))
        job.cloud.undelivered = {1}

        async def relent(_):
            await job.until(lambda: len(job.cloud.invoked) == 3)
            job.cloud.undelivered = set()

        outcome = await job.run(relent)
        return outcome, await job.weights(), job

    outcome, weights, job = asyncio.run(scenario())
    assert outcome.generations == 1
    assert weights == undisturbed
    assert sorted(job.cloud.invoked) == [(1, 0), (1, 1), (1, 1), (1, 2)]
    [again] = job.events("called again")
    assert (again["rank"], again["calls"]) == (1, 2)
    # What was lost was never begun, and is not waited for at the end.
    assert not any(result["status"] == "not needed" for result in job.cloud.results)


@pytest.mark.parametrize("deaths", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_rank_that_dies_before_it_claims_is_sent_for_again_but_not_for_ever(
    town, undisturbed, deaths
):
    async def scenario():
        job = town()
        job.cloud.doomed = [1] * deaths
        outcome = await job.run()
        return outcome, await job.weights(), job

    outcome, weights, job = asyncio.run(scenario())
    assert weights == undisturbed
    calls = [call for call in job.cloud.invoked if call == (1, 1)]
    assert len(calls) == 3
    if deaths == 2:
        assert outcome.generations == 1
    else:
        [abort] = job.events("abort")
        assert (abort["kind"], abort["rank"]) == ("start", 1)
        assert "Runtime.ExitError" in abort["message"]
        assert outcome.generations == 2


def test_death_of_a_second_delivery_is_not_the_ranks(town, undisturbed):
    async def scenario():
        job = town()
        job.cloud.twice = job.cloud.second_dies = True
        outcome = await job.run()
        return outcome, await job.weights()

    outcome, weights = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 1)
    assert weights == undisturbed


def test_store_that_is_lost_before_the_roster_is_not_waited_for(town, undisturbed):
    async def scenario():
        # A rank waits for its roster for as long as a start may take, which is beyond our limit.
        job = town(limits=replace(QUICK, start_s=100))
        job.cloud.undelivered = {1}

        async def flush(_):
            claims = "smlt:{{drift:1}}:claim:{}"
            names = [claims.format(rank) for rank in (0, 2)]
            await job.until(lambda: all(name in job.store._contents.values for name in names))
            job.cloud.undelivered = set()
            kept = dict(job.objects._contents.objects)
            forget(job.name)
            job.objects._contents.objects.update(kept)

        outcome = await job.run(flush)
        return outcome, await job.weights(), job.cloud.results

    outcome, weights, results = asyncio.run(scenario())
    assert outcome.generations == 2
    assert weights == undisturbed
    assert [result["status"] for result in results[:2]] == ["not needed"] * 2


def test_events_delivered_twice_change_nothing(town, undisturbed):
    async def scenario():
        job = town()
        job.cloud.twice = True
        outcome = await job.run()
        return outcome, await job.weights(), job.cloud.results

    outcome, weights, results = asyncio.run(scenario())
    assert outcome.generations == 1
    assert weights == undisturbed
    assert sum(result["status"] == "not needed" for result in results) == 3


def test_throttled_invocations_are_tried_again(town, undisturbed):
    async def scenario():
        job = town()
        job.cloud.refusals = 2
        outcome = await job.run()
        return outcome, await job.weights(), job.progress.notices

    outcome, weights, notices = asyncio.run(scenario())
    assert (outcome.status, weights) == ("completed", undisturbed)
    assert any("TooManyRequests" in notice for notice in notices)


def test_service_that_refuses_for_good_ends_the_job_in_its_own_words(town):
    async def scenario():
        job = town(limits=replace(QUICK, start_s=0.5))
        job.cloud.refusals = 10**6
        return await job.run(), job.cloud.invoked

    outcome, invoked = asyncio.run(scenario())
    assert (outcome.status, outcome.failure.kind, outcome.generations) == ("failed", "start", 3)
    assert outcome.message.endswith("TooManyRequestsException: Rate exceeded (3 times)")
    assert invoked == []


def test_failure_that_passes_is_survived(town, undisturbed):
    async def scenario():
        job = town(params={"fail_at": 7, "fail_times": 1})
        outcome = await job.run()
        return outcome, await job.weights()

    outcome, weights = asyncio.run(scenario())
    assert outcome.generations == 2
    assert weights == undisturbed


def test_failure_that_comes_again_ends_the_job_with_its_traceback_and_checkpoint(town):
    async def scenario():
        job = town(params={"fail_at": 7})
        return await job.run()

    outcome = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("failed", 3)
    assert "RuntimeError: boom at 7" in outcome.message
    assert "drift.py" in outcome.failure.traceback
    assert outcome.newest.step == 7


def test_loss_that_is_no_number_ends_the_job_at_once(town):
    async def scenario():
        job = town(params={"nan_at": 4})
        return await job.run()

    outcome = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("failed", 1)
    assert "step 5" in outcome.message
    assert "nan" in outcome.message
    assert outcome.newest.step == 4


def test_stop_on_request_keeps_a_checkpoint_that_all_ranks_agreed_on(town):
    async def scenario():
        job = town(epochs=10_000)

        async def stop(scheduler):
            await job.until(lambda: job.progress.step >= 5)
            await scheduler.request_stop()
            await asyncio.sleep(LIMIT_S)

        outcome = await job.run(stop)
        kept = await checkpoint.read(job.objects, "drift", outcome.newest)
        return outcome, int(kept.tensors["steps"].numpy()), job.progress.step

    outcome, saved, shown = asyncio.run(scenario())
    assert outcome.status == "stopped"
    assert saved == outcome.newest.step == shown


def test_later_generations_find_their_state_in_warm_memory(town, undisturbed):
    async def scenario():
        job = town(workers=1)
        loads = []
        read = checkpoint.read

        async def counted(*args):
            loads.append(args)
            return await read(*args)

        checkpoint.read = counted
        try:
            task = {"fail_at": 7, "fail_times": 1}
            job.spec = JobSpec.from_dict({**job.spec.to_dict(), "params": task})
            outcome = await job.run()
        finally:
            checkpoint.read = read
        return outcome, len(loads)

    outcome, loads = asyncio.run(scenario())
    assert outcome.generations == 2
    assert loads == 1


def test_job_that_is_made_longer_is_as_long_for_warm_ranks_as_for_cold_ones(town):
    async def scenario():
        short = town(workers=3, epochs=1, digest_steps=5, params={"decays": True})
        assert (await short.run()).status == "completed"
        job = await Job.load(short.objects, "drift")
        longer = {"spec": replace(short.spec, epochs=3), "plan": replace(job.state.plan, workers=4)}
        await job.take_over(this_client(), status="running", **longer)
        await short.objects.delete(JobObjects("drift").model)
        return await short.leader(job).run()

    outcome = asyncio.run(scenario())
    assert outcome.status == "completed", outcome.message


def test_best_weights_are_kept_though_the_first_rank_dies_with_them(tmp_path, monkeypatch):
    async def best(name, deaths):
        (tmp_path / name).mkdir()
        job = Town(tmp_path / name, target="drift.py:Scored", keep_best="score", epochs=3)

        async def dying(*args, **generation):
            if deaths:
                job.cloud.kill(deaths.pop())
                await asyncio.sleep(LIMIT_S)
            await replace_weights(*args, **generation)

        with monkeypatch.context() as patch:
            patch.setattr("smlt.worker.rank.replace_weights", dying)
            outcome = await job.run()
        assert outcome.status == "completed"
        kept = await read_weights(job.objects, JobObjects("drift").best)
        return kept["w"].data.tobytes()

    async def scenario():
        return await best("calm", []), await best("killed", [0])

    calm, killed = asyncio.run(scenario())
    assert killed == calm


def test_step_counts_though_it_could_not_be_told_of(town, monkeypatch):
    told = StepReports.evaluation
    troubles = [StoreUnreachableError("no answer")]

    async def lost(self, *evaluation):
        if troubles:
            raise troubles.pop()
        await told(self, *evaluation)

    async def scenario():
        job = town(workers=1, target="drift.py:Scored", keep_best="score", patience=2, epochs=9)
        outcome = await job.run()
        return outcome, job.progress.step

    monkeypatch.setattr(StepReports, "evaluation", lost)
    outcome, steps = asyncio.run(scenario())
    # The first evaluation is the best, and two worse ones are borne.
    assert (outcome.status, outcome.generations, steps) == ("completed", 2, 18)


def test_slow_environment_is_named_and_replaced(town, undisturbed):
    async def scenario():
        job = town()
        # A piece of work takes a tenth of a second more there: two in each step.
        job.cloud.slow = {"stream-1": 0.1}
        outcome = await job.run()
        return outcome, await job.weights(), job

    outcome, weights, job = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 2)
    assert weights == undisturbed
    [slow], [replaced] = job.events("straggler"), job.events("replace")
    assert (slow["rank"], replaced["ranks"]) == (1, [1])
    assert slow["times"] > MULTIPLE
    assert any(text.startswith("rank 1 takes") for text in job.progress.notices)
    assert not job.events("abort")
    assert len(job.events("step")) == 36
    invoked = [event.stream for event in job.cloud.events if event.message.startswith("START")]
    assert sorted(invoked) == [f"stream-{n}" for n in (0, 0, 1, 2, 2, 3)]
    assert sum("retired" in result for result in job.cloud.results) == 1


def test_nothing_of_a_job_is_left_in_the_parameter_store(town):
    async def scenario():
        job = town()
        await job.run()
        contents = job.store._contents
        return [*contents.values, *contents.streams]

    assert asyncio.run(scenario()) == []


def test_job_that_is_complete_without_its_model_is_an_error(tmp_path):
    objects, folder = MemoryObjectStore("no-model"), RunFolder(tmp_path)
    outcome = Outcome("completed", "training is complete", None, None, 1)
    with pytest.raises(StoreError, match="has been deleted from memory://no-model since"):
        asyncio.run(summarise(Progress(job_id="gone"), outcome, objects, folder))


def test_job_whose_checkpoint_cannot_be_read_is_summed_up(tmp_path):
    objects, folder = MemoryObjectStore("no-manifest"), RunFolder(tmp_path)
    outcome = Outcome("failed", "it is damaged", Position(generation=1, step=4), None, 1)
    summary = asyncio.run(summarise(Progress(job_id="torn"), outcome, objects, folder))
    assert (summary.state, summary.message) == ("failed", "it is damaged")


class Advice:
    """A resource manager that says what it was made with, one decision after the other."""

    def __init__(self, *decisions):
        self.decisions = list(decisions)
        self.began, self.steps = [], 0

    def work(self, report):
        assert report.kind == "plan"

    def begin(self, plan, now):
        self.began.append((plan.workers, plan.memory_mb))
        self.steps = 0

    def end(self, now):
        pass

    def step(self, record, now):
        self.steps += 1

    def evaluation(self, seconds):
        assert seconds > 0

    def failed(self, kind):
        return None

    def decide(self, standing, now):
        return self.decisions.pop(0) if self.decisions and self.steps else None


def test_a_resource_manager_changes_the_plan_and_says_why(town):
    plan = ResourcePlan(workers=5, memory_mb=256)

    async def scenario():
        job = town(epochs=100)
        job.manager = Advice(Decision(reason="five are better", plan=plan, saving=0.2))
        outcome = await job.run()
        found = await read_weights(job.objects, JobObjects("drift").model)
        return outcome, found["w"].numpy(), job

    outcome, weights, job = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 2)
    assert job.manager.began == [(3, 128), (5, 256)]
    [event] = job.events("plan")
    assert (event["reason"], event["saving"], event["workers"]) == ("five are better", 0.2, 5)
    assert job.progress.plan == "five are better"
    np.testing.assert_allclose(weights, in_one_process(steps=600), rtol=2e-3, atol=2e-4)


def test_a_plan_that_is_kept_is_told_of_and_changes_nothing(town):
    plan = ResourcePlan(workers=3, memory_mb=128)

    async def scenario():
        job = town(epochs=100)
        job.manager = Advice(Decision(reason="three are best", plan=plan, stays=True))
        return await job.run(), job

    outcome, job = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("completed", 1)
    [event] = job.events("plan")
    assert (event["reason"], event["saving"], event["workers"]) == ("three are best", 0.0, 3)
    assert job.progress.plan == "three are best"


def test_workers_train_on_while_the_function_of_another_plan_is_published(town):
    """In a private network that takes a minute, in which nothing has to stand still."""
    plan = ResourcePlan(workers=5, memory_mb=256)

    async def scenario():
        job = town(epochs=10_000)  # the plan comes long before the end, however fast steps are
        job.manager = Advice(Decision(reason="five are better", plan=plan, saving=0.2))
        made, trained = job.function, []

        async def slowly(memory_mb):
            if memory_mb == 256:
                trained.append(job.progress.step)
                for _ in range(3000):
                    if job.progress.step >= trained[0] + 20:
                        break
                    await asyncio.sleep(0.01)
                trained.append(job.progress.step)
            return await made(memory_mb)

        async def stop(scheduler):
            await job.until(lambda: len(job.manager.began) == 2 and job.manager.steps)
            await scheduler.request_stop()

        job.function = slowly
        outcome = await job.run(stop)
        return outcome, job, trained

    outcome, job, trained = asyncio.run(scenario())
    assert (outcome.status, outcome.generations) == ("stopped", 2)
    assert job.manager.began == [(3, 128), (5, 256)]
    assert trained[1] >= trained[0] + 20


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"deadline_s": 4.0}, "stopped at its deadline of 4 s"),
        # 3 × 128 MB: $0.00000625 a second
        ({"budget_usd": 2.5e-5}, "stopped before it crosses its budget of $2.5e-05"),
    ],
)
def test_a_job_stops_at_its_goal_with_a_checkpoint(town, goal, words):
    async def scenario():
        job = town(epochs=1_000_000, limits=replace(QUICK, stop_s=1.0), **goal)
        first = ResourcePlan(workers=3, memory_mb=128)
        cost = StepCost(prices=read_prices())
        job.manager = ResourceManager(job.spec, first, cost, notice=print)
        return await job.run(), job

    outcome, job = asyncio.run(scenario())
    assert (outcome.status, outcome.message) == ("stopped", words)
    assert outcome.newest.step > 0
    assert outcome.generations == 1
    assert job.progress.cost_usd <= goal.get("budget_usd", 1)
    assert job.progress.elapsed_s <= goal.get("deadline_s", 60)
