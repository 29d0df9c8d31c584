"""Take a job through its generations, one after the other, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smlt.control.bursts import Bursts
from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.kept_states import KeptStates
from smlt.control.lambda_client import LambdaService
from smlt.control.plans import Plans
from smlt.control.progress_feed import ProgressFeed
from smlt.control.retries import Retries
from smlt.control.steering import Steering
from smlt.control.store_bill import RENEWALS
from smlt.control.straggler_watch import StragglerWatch
from smlt.control.supervisor import Ended, Supervisor
from smlt.errors import JobHeldError, StoreError
from smlt.io.keys import GenerationKeys, JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.parameter_store import ControlStore
from smlt.messages.job import EXACT, Position, ResourcePlan
from smlt.messages.worker import Failure, StepFlag, WorkerTask

if TYPE_CHECKING:  # SciPy is behind it, for which a job without a goal need not wait
    from smlt.control.resource_manager import Decision, ResourceManager

logger = logging.getLogger(__name__)

# A store that is gone is not waited for.
_TIDY_S = 2.0
AT_ONCE = "stopped at once, on request"
"""What is said of a job that did not wait for the end of its step."""
PAUSED = "paused after its epochs, to be resumed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the job ended."""

    status: str
    """completed, stopped or failed."""
    message: str
    """Why, in one sentence."""
    newest: Position | None
    failure: Failure | None
    generations: int


class TaskScheduler:
    """Draws generations until the job has its model, is stopped, or cannot go on."""

    def __init__(
        self,
        job: Job,
        *,
        objects: ObjectStore,
        store: ControlStore,
        cloud: LambdaService,
        functions: Functions,
        invocations: Invocations,
        feed: ProgressFeed,
        objects_url: str,
        parameters_url: str,
        manager: ResourceManager | None = None,
        more_data: Callable[[], Awaitable[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._bursts = Bursts(job, objects, feed, more_data) if more_data else None
        self._kept = KeptStates(job, objects)
        self._objects = objects
        self._store = store
        self._cloud = cloud
        self._functions = functions
        self._plans = Plans(job.state.spec, functions, feed.notice)
        self._invocations = invocations
        self._feed = feed
        self._objects_url = objects_url
        self._parameters_url = parameters_url
        self._clock = clock
        self._supervisor: Supervisor | None = None
        self._running: asyncio.Task[Outcome] | None = None
        self._given_up: Failure | None = None
        self._overtaken: JobHeldError | None = None
        self._broken: BaseException | None = None
        """What went wrong inside, beside the generations."""
        self._stopping = asyncio.Event()
        self._retries = Retries()
        self._slow = StragglerWatch(feed, self._replace, clock)
        self._steering: Steering | None = None
        if manager is not None:
            self._steering = Steering(
                manager,
                feed,
                invocations,
                functions,
                go_over=self.request_plan,
                end=self._run_out,
                clock=clock,
            )

    async def run(self) -> Outcome:
        """Run generation after generation; the job's durable state says how it ended.

        Raises:
            JobHeldError: another client has taken over; nothing was changed since.
        """
        self._running = asyncio.create_task(self._generations())
        beside = [asyncio.create_task(task) for task in (self._hold(), self._slow.run())]
        if self._steering is not None:
            beside.append(asyncio.create_task(self._steering.run(self._stopping)))
        for task in beside:
            task.add_done_callback(self._look_at)
        try:
            outcome = await self._running
        except asyncio.CancelledError:
            if self._overtaken is not None:
                raise self._overtaken from None
            if self._broken is not None:
                raise self._broken from None
            if self._given_up is None:
                raise
            outcome = await self._abandoned(self._given_up)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        await self._job.end(outcome.status, outcome.message, outcome.newest)
        return outcome

    def _look_at(self, beside: asyncio.Task[None]) -> None:
        """Do not lead the job without what keeps its lease, its budget and its deadline."""
        if not beside.cancelled() and self._running is not None:
            self._broken = beside.exception()
            if self._broken is not None:
                self._running.cancel()

    async def _hold(self) -> None:
        """Keep the lease on the job, and hear of stops that another process asks for."""
        while True:
            await asyncio.sleep(self._job.state.spec.limits.hold_s / RENEWALS)
            try:
                await self._job.renew()
                if self._job.state.stop_now:
                    await self.stop_now()
                elif self._job.state.stop_requested and not self._stopping.is_set():
                    await self.request_stop()
            except JobHeldError as error:
                self._overtaken = error
                if self._running is not None:
                    self._running.cancel()
                return
            except StoreError as error:
                # Training needs no job state between generations: it may come back.
                logger.warning("the lease on the job could not be renewed: %s", error)

    async def _replace(self, ranks: list[int]) -> None:
        """Have slow ranks go on in other environments."""
        if self._supervisor is None or self._stopping.is_set() or self._has_run_out:
            return
        self._feed.event("replace", ranks=ranks)
        with contextlib.suppress(StoreError):
            await self._supervisor.replace(ranks)

    async def _run_out(self, decision: Decision) -> None:
        """End the generation: budget or deadline allow no more."""
        if self._supervisor is None or decision.stop is None:
            return
        with contextlib.suppress(StoreError):
            if decision.at_once:
                await self._supervisor.abort(Failure(kind="stop", message=decision.reason))
            else:
                await self._supervisor.stop(decision.stop)

    @property
    def _has_run_out(self) -> str:
        """What the job has run out of, in words: its budget, or the time to its deadline."""
        return "" if self._steering is None else self._steering.run_out

    def give_up(self, failure: Failure) -> None:
        """End the job at once, as failed: what it runs on is gone for good."""
        self._given_up = failure
        if self._running is not None:
            self._running.cancel()

    async def _generations(self) -> Outcome:
        parent = await self._conclude()
        if self._job.state.stop_requested:
            self._stopping.set()
        while True:
            ended = await self._run_generation(parent)
            newest = await self._kept.newest()
            if newest is None and ended.failure is not None and ended.failure.kind == "parent":
                newest = await self._kept.before(parent)
            parent = newest or parent
            with contextlib.suppress(StoreError):  # what is too much does no harm
                await self._kept.prune(parent)
            self._feed.progress.checkpoint = self._kept.where(parent)
            outcome = await self._judge(ended, parent)
            if outcome is None:
                await self._back_off(ended)
            elif not await self._goes_on(outcome):
                return outcome

    async def _goes_on(self, outcome: Outcome) -> bool:
        """Whether a job that has done all it had to do has been given more."""
        if outcome.status != "completed" or self._bursts is None or outcome.newest is None:
            return False
        return await self._bursts.more(outcome.newest, self._stopping)

    async def _abandoned(self, failure: Failure) -> Outcome:
        newest, state = await self._kept.newest(), self._job.state
        return Outcome("failed", failure.message, newest or state.parent, failure, state.generation)

    async def request_stop(self) -> None:
        """End the job cleanly: all ranks leave after their current step and save."""
        self._stopping.set()
        self._feed.progress.state = "stopping"
        if self._supervisor is not None:
            # A store that fails ends the generation all the same.
            with contextlib.suppress(StoreError):
                await self._supervisor.stop(StepFlag.USER)
        # Last, for the object store may have to be waited for.
        await self._job.request_stop()

    async def request_plan(self, plan: ResourcePlan) -> None:
        """Go on with other workers, or another size of them, from the next generation on.

        All ranks leave after their current step, with their state saved. Any number of workers
        will do up to the virtual ones, who are dealt out anew; memory of a size that was not used
        before takes a new function. What the job has already is left as it is.

        Raises:
            ValueError: more workers than virtual ones, or none.
        """
        if self._plans.want(plan, self._job.state.plan) and self._supervisor is not None:
            # A store that fails ends the generation all the same.
            with contextlib.suppress(StoreError):
                await self._supervisor.stop(StepFlag.PLAN)

    async def stop_now(self) -> None:
        """End the job without waiting for the step: no worker outlives ``limits.stop_s``."""
        self._stopping.set()
        self._feed.progress.state = "stopping"
        if self._supervisor is not None:
            with contextlib.suppress(StoreError):
                await self._supervisor.abort(Failure(kind="stop", message=AT_ONCE))

    async def _conclude(self) -> Position | None:
        """End the generation that an earlier client left running; return the newest state."""
        state = self._job.state
        if state.generation and state.status == "running":
            why = Failure(kind="client", message="another client has taken over the job")
            if state.stop_now:
                why = Failure(kind="stop", message=AT_ONCE)
            function = await self._functions.of(state.plan.memory_mb)
            earlier = self._supervise(state.generation, state.plan, function)
            await earlier.conclude(why)
            await self._tidy(state.generation)
        return await self._kept.newest() or state.parent

    async def _run_generation(self, parent: Position | None) -> Ended:
        plan, function = await self._plans.take(self._job.state.plan)
        number = await self._job.draw(parent, plan)
        progress = self._feed.progress
        progress.generation, progress.size = number, plan
        self._feed.event(
            "generation",
            generation=number,
            parent=parent.to_dict() if parent else None,
            **plan.to_dict(),
        )
        supervisor = self._supervisor = self._supervise(number, plan, function)
        if self._stopping.is_set():
            return Ended(None, StepFlag.USER)
        if self._has_run_out:
            return Ended(None, StepFlag(0))
        if self._steering is not None:
            self._steering.begin(plan)
        if self._plans.wanted is not None:
            # It came while this generation was being drawn.
            await self._supervisor.stop(StepFlag.PLAN)
        progress.state = "running"
        self._slow.begin(lambda: supervisor.world_size)
        ended = await supervisor.run()
        self._supervisor = None
        if self._steering is not None:
            self._steering.rest()
        self._feed.rest()
        if ended.failure is not None:
            self._feed.event("abort", generation=number, **ended.failure.to_dict())
        await self._tidy(number)
        return ended

    def _supervise(self, generation: int, plan: ResourcePlan, function: Function) -> Supervisor:
        state = self._job.state
        return Supervisor(
            WorkerTask(
                job_id=state.job_id,
                generation=generation,
                rank=0,
                token=state.token,
                objects=self._objects_url,
                parameters=self._parameters_url,
            ),
            plan.workers,
            store=self._store,
            cloud=self._cloud,
            function=function,
            invocations=self._invocations,
            feed=self._feed,
            limits=state.spec.limits,
            exact=state.spec.determinism == EXACT,
            clock=self._clock,
        )

    async def _tidy(self, generation: int) -> None:
        """Free what the generation left in the parameter store; expiry would, but later."""
        keys = GenerationKeys(self._job.state.job_id, generation)
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_TIDY_S):
                await self._store.sweep(keys.prefix)

    async def _judge(self, ended: Ended, newest: Position | None) -> Outcome | None:
        """Decide how the job goes on from how a generation ended; None means another one."""
        failure, state = ended.failure, self._job.state

        def outcome(status: str, message: str) -> Outcome:
            return Outcome(status, message, newest, failure, state.generation)

        if await self._objects.head(JobObjects(state.job_id).model) is not None:
            return outcome("completed", "training is complete")
        if state.stop_now:
            return outcome("stopped", AT_ONCE)
        if self._has_run_out:
            return outcome("stopped", self._has_run_out)
        if self._stopping.is_set() or ended.reasons & StepFlag.USER:
            return outcome("stopped", "stopped on request")
        if ended.reasons & StepFlag.PAUSE:
            return outcome("stopped", PAUSED)
        if ended.reasons & StepFlag.ORPHANED:
            # This client was away for a while, and is here again: nobody has asked for an end.
            limits = state.spec.limits
            away_s = limits.client_lease_s + limits.orphan_s
            self._feed.notice(
                f"the workers had not seen this client for {away_s:g} s, and left with their state "
                "saved; training goes on"
            )
        if failure is None:
            return None
        if self._steering is not None:
            plan = self._steering.failed(failure.kind)
            if plan is not None:
                self._plans.wanted = plan
                self._feed.notice(f"{failure.message}; going back to {plan.workers} workers")
                return None
        why = self._retries.end(failure, newest)
        if why:
            return outcome("failed", why)
        self._feed.notice(f"{failure.message}; going on from {await self._kept.in_words(newest)}")
        return None

    async def _back_off(self, ended: Ended) -> None:
        if ended.failure is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retries.delay_s):
                    await self._stopping.wait()
