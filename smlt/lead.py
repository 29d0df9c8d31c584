"""Lead one job as its client: from an open cloud to the summary."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smlt.control.bursts import REMOTE_POLL_S, WatchedFolder
from smlt.control.data_mirror import DataMirror
from smlt.control.event_log import EventLog
from smlt.control.functions import Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job
from smlt.control.late_reports import wait_for_reports
from smlt.control.prices import Prices, prices_of
from smlt.control.progress import Progress, Summary
from smlt.control.progress_feed import ProgressFeed
from smlt.control.run_folder import RunFolder
from smlt.control.step_cost import ParameterStorePrice, StepCost
from smlt.control.store_bill import StoreBill
from smlt.control.summary import summarise
from smlt.control.task_scheduler import AT_ONCE, Outcome, TaskScheduler
from smlt.errors import ConfigError, JobHeldError, StoreError, StoreFullError, UserError
from smlt.io.keys import job_prefix
from smlt.io.link_rate import paced
from smlt.io.object_store import ObjectStore
from smlt.io.parameter_store import ControlStore
from smlt.io.patient_objects import PatientObjects
from smlt.io.stores import open_object_store
from smlt.messages.job import JobSpec, Limits
from smlt.messages.worker import Failure
from smlt.place import REACH_S, Place

if TYPE_CHECKING:  # SciPy is behind it, for which a job without a goal need not wait
    from smlt.control.resource_manager import ResourceManager

_CUT_S = 10.0
# Ours and the cloud's.
CLOCKS_DIFFER_S = 300.0


class Lead:
    """What every client of a job does, however it came to it."""

    def __init__(self, prices: Path | None = None) -> None:
        self.progress = Progress()
        self._prices = prices
        self._scheduler: TaskScheduler | None = None
        self._running: asyncio.Task[Any] | None = None
        self._stop_requested = False

    def _patient(self, objects: ObjectStore) -> ObjectStore:
        """Return the store as a client uses it: an outage is waited for, and the user told."""
        limit_s = Limits().objects_s

        def on_wait(what: str, why: str) -> None:
            self.progress.stalled = f"the client waits for {what}" if what else ""
            notice = f"{objects.url} does not answer; it is waited for up to {limit_s:g} s"
            if why and notice not in self.progress.notices:
                self.progress.notices.append(notice)

        return PatientObjects(objects, limit_s=limit_s, on_wait=on_wait)

    async def request_stop(self) -> None:
        """End cleanly: every rank leaves after its current step, and the state is saved."""
        self._stop_requested = True
        self.progress.state = "stopping"
        if self._scheduler is not None:
            await self._scheduler.request_stop()

    async def stop_now(self) -> None:
        """End at once; what the newest checkpoint does not hold is lost."""
        if self._running is not None:
            self._running.cancel()

    async def _lead(
        self, job: Job, objects: ObjectStore, place: Place, folder: RunFolder
    ) -> Summary:
        """Take the job, of which this client holds the lease, to its end."""
        progress, spec = self.progress, job.state.spec
        progress.notices.extend(place.notices)
        prices = self._prices_at(place)
        invocations = Invocations(
            folder.logs,
            prices=prices,
            kind=place.kind,
            earlier=(progress.billed_gb_s, progress.cost_usd),
            since_ms=int((time.time() - CLOCKS_DIFFER_S) * 1000),
        )
        cost, stores = self._costs(place, spec, prices, objects.url)
        feed = ProgressFeed(progress, EventLog(folder.events), stores=stores)
        functions = Functions(place.make)
        await functions.of(job.state.plan.memory_mb)
        store = place.open_store(spec.limits.store_s, invocations.called)
        async with store, folder.status_of(progress):
            scheduler = self._scheduler = TaskScheduler(
                job,
                objects=objects,
                store=store,
                cloud=place.cloud,
                functions=functions,
                invocations=invocations,
                feed=feed,
                objects_url=objects.url,
                parameters_url=paced(place.parameters, spec.link_mbps),
                manager=self._manager(job, feed, cost),
                more_data=_more_data(folder, objects, spec),
            )
            if self._stop_requested:
                await scheduler.request_stop()
            watch = asyncio.create_task(_watch(place, scheduler))
            try:
                outcome = await self._swept(scheduler.run(), store)
            except asyncio.CancelledError:
                await self._cut_short(job, objects, store, folder)
                raise
            finally:
                self._scheduler = None
                watch.cancel()
            await self._close_account(place, invocations, feed, outcome)
        if outcome.failure is not None and outcome.failure.kind == "user":
            raise UserError(outcome.message)
        summary = await summarise(progress, outcome, objects, folder)
        folder.write_summary(summary)
        return summary

    async def _close_account(
        self, place: Place, invocations: Invocations, feed: ProgressFeed, outcome: Outcome
    ) -> None:
        """Take in the last of what functions have cost, and write down how the job ended."""
        if invocations.unreported:
            await wait_for_reports(place.cloud, invocations)
        self.progress.billed_gb_s, functions_usd = invocations.bill()
        self.progress.cost_usd = feed.spent_usd(functions_usd)
        self.progress.state = outcome.status
        feed.event("end", status=outcome.status, message=outcome.message)

    async def _swept(self, running: Awaitable[Outcome], store: ControlStore) -> Outcome:
        """Return how the job ended, with the parameter store free of it."""
        try:
            outcome = await running
        except (asyncio.CancelledError, JobHeldError):
            raise  # what is in the stores is, or may be, another client's now
        except BaseException:
            await _sweep(store, self.progress.job_id)
            raise
        await _sweep(store, self.progress.job_id)
        return outcome

    def _prices_at(self, place: Place) -> Prices:
        prices = prices_of(place.kind.region, self._prices)
        if prices.region != place.kind.region:
            self.progress.notices.append(
                f"there are no prices of {place.kind.region}: costs are those of {prices.region}; "
                "give your own with --prices"
            )
        return prices

    def _costs(
        self, place: Place, spec: JobSpec, prices: Prices, objects_url: str
    ) -> tuple[StepCost, StoreBill | None]:
        """Return what steps cost, and what meters the stores; None where they have no price."""
        cost = StepCost(
            prices=prices,
            architecture=place.kind.architecture,
            store=ParameterStorePrice.of(place.parameters, spec.cache_node),
            shard_bytes=spec.shard_bytes,
            aggregators=spec.aggregators,
            wire_dtype=spec.wire_dtype,
        )
        try:
            return cost, StoreBill(spec, cost, objects_url)
        except ConfigError as error:
            self.progress.notices.append(f"what stores cost is not counted: {error}")
            return replace(cost, store=ParameterStorePrice()), None

    def _manager(self, job: Job, feed: ProgressFeed, cost: StepCost) -> ResourceManager | None:
        """Return what watches the job's goals, if it has any."""
        spec = job.state.spec
        if not (spec.adapt or spec.deadline_s or spec.budget_usd):
            return None
        manager: type[ResourceManager] = import_module(
            "smlt.control.resource_manager"
        ).ResourceManager
        return manager(spec, job.state.plan, cost, notice=feed.notice, seed=spec.seed)

    async def _cut_short(
        self, job: Job, objects: ObjectStore, store: ControlStore, folder: RunFolder
    ) -> None:
        """Write down that the job was stopped without waiting for its step."""
        self.progress.state = "stopped"
        state = job.state
        stopped = Outcome("stopped", AT_ONCE, state.parent, None, state.generation)
        # An object store that is out is not waited for: the lease on the job lapses by itself.
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await job.end("stopped", AT_ONCE, state.parent)
                folder.write_summary(await summarise(self.progress, stopped, objects, folder))
        # Only now: had another client taken over, what is in the store would be its own.
        await _sweep(store, state.job_id)


async def _sweep(store: ControlStore, job_id: str) -> None:
    # Expiry would free what is left, but later; a store that is gone is not waited for.
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(REACH_S):
            await store.sweep(job_prefix(job_id))


def _more_data(
    folder: RunFolder, objects: ObjectStore, spec: JobSpec
) -> Callable[[], Awaitable[str]] | None:
    """Return what waits for more data, where the job watches a folder."""
    source = folder.watched
    if source is None:
        return None
    if source.is_remote:
        mirror = DataMirror(source, folder.path.parents[1])
        watched = WatchedFolder(
            mirror.folder, objects, spec.data, refresh=mirror.refresh, poll_s=REMOTE_POLL_S
        )
        return watched.more
    return WatchedFolder(Path(source), objects, spec.data).more


async def _watch(place: Place, scheduler: TaskScheduler) -> None:
    if place.ended is not None:
        scheduler.give_up(Failure(kind="cloud", message=await place.ended()))


async def check_objects(url: str) -> None:
    """Find out before anything is started that the object store cannot be used."""
    async with open_object_store(url) as store:
        async for _ in store.list("code/none"):
            return


@contextmanager
def disk_errors(run_dir: Path) -> Iterator[None]:
    """Say in a sentence what the disk of the run directory refused."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise StoreFullError(f"cannot write to the run directory {run_dir}: {error}") from error
