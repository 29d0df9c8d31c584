"""The composition root: builds stores, cloud and scheduler for a job, and joins them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smlt.config import TrainConfig
from smlt.control import artifact_manager
from smlt.control.artifact_manager import Target
from smlt.control.event_log import EventLog
from smlt.control.functions import Function, Functions
from smlt.control.invocations import Invocations
from smlt.control.job import Job, new_job_id
from smlt.control.job_settings import first_plan, function_environment, training_settings
from smlt.control.lambda_client import Endpoint, LambdaService, lambda_client
from smlt.control.prices import read_prices
from smlt.control.progress import Progress, Summary
from smlt.control.progress_feed import ProgressFeed
from smlt.control.run_folder import RunFolder
from smlt.control.summary import summarise
from smlt.control.task_scheduler import Outcome, TaskScheduler
from smlt.embedded.cloud import EmbeddedCloud
from smlt.errors import StoreError, StoreFullError, UserError
from smlt.inline import InlineCloud
from smlt.io.keys import job_prefix
from smlt.io.object_store import ObjectStore
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.messages import Failure, JobSpec
from smlt.worker.task_loader import find_class
from smlt.worker.task_params import parse_params

# Longer than it takes the workers to notice that the client is gone, and to save.
_LINGER_S = 20.0
# A server that answers at all answers within this.
_REACH_S = 3.0
_AT_ONCE = "stopped at once, on request"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a job runs: a Lambda service, and the parameter store as workers reach it."""

    cloud: LambdaService
    parameters: str
    ended: Callable[[], Awaitable[str]] | None = None
    """Waits for the service's own untimely end, and says how it came."""


class Session:
    """One training job, from its settings to its summary."""

    def __init__(self, config: TrainConfig) -> None:
        self.progress = Progress()
        self._config = config
        self._scheduler: TaskScheduler | None = None
        self._running: asyncio.Task[Any] | None = None
        self._stop_requested = False

    async def train(self) -> Summary:
        """Run the job to its end.

        Raises:
            UserError: a setting, the task or the data cannot be used. What is found before the
                job begins has started and changed nothing.
            SmltError: a store or the cloud failed in a way that no new generation mends.
        """
        config, progress = self._config, self.progress
        target = artifact_manager.locate(config.target, Path.cwd())
        params = parse_params(find_class(target.reference, target.root), config.params)
        data = artifact_manager.find_data(target, config.data)
        artifact_manager.check_weights(config.init_from)
        read_prices(config.prices)
        run_dir = config.run_dir.resolve()
        skip = [run_dir] if data is None else [run_dir, data]
        package, code = artifact_manager.pack_code(target, skip)
        progress.job_id = new_job_id(target.reference.rpartition(":")[2])
        progress.epochs = config.epochs
        self._running = asyncio.current_task()
        if config.parameters is not None:
            await _check_server(config.parameters)
        objects_url = config.object_store or (run_dir / "objects").as_uri()
        if config.objects is not None:
            await _check_objects(objects_url)
        async with AsyncExitStack() as stack:
            stack.enter_context(_disk_errors(run_dir))
            folder = RunFolder.create(run_dir, progress.job_id)
            objects = await stack.enter_async_context(open_object_store(objects_url))
            await artifact_manager.upload_code(objects, package, code)
            spec = JobSpec(
                target=target.reference,
                params=params,
                code=code,
                data=None if data is None else await artifact_manager.upload_data(objects, data),
                init_from=await artifact_manager.upload_weights(objects, config.init_from),
                **training_settings(config),
            )
            async with self._place(run_dir, folder, target) as place:
                return await self._run(objects, spec, package, place, folder)

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

    async def _run(
        self,
        objects: ObjectStore,
        spec: JobSpec,
        package: bytes,
        place: _Place,
        folder: RunFolder,
    ) -> Summary:
        progress = self.progress
        feed = ProgressFeed(progress, EventLog(folder.events))
        plan = first_plan(self._config)
        job = await Job.create(objects, progress.job_id, spec, plan)

        async def function(memory_mb: int) -> Function:
            name = f"smlt-{spec.code[:12]}-{memory_mb}"
            version = await place.cloud.create_function(
                name,
                package,
                handler=artifact_manager.HANDLER,
                memory_mb=memory_mb,
                timeout_s=int(spec.limits.function_s),
                environment=function_environment(memory_mb),
                runtime=artifact_manager.python_runtime(),
            )
            return Function(name=name, version=version, memory_mb=memory_mb)

        functions = Functions(function)
        await functions.of(plan.memory_mb)
        store = open_parameter_store(place.parameters, time_limit_s=spec.limits.store_s)
        async with store, folder.status_of(progress):
            scheduler = self._scheduler = TaskScheduler(
                job,
                objects=objects,
                store=store,
                cloud=place.cloud,
                functions=functions,
                invocations=Invocations(folder.logs, prices=read_prices(self._config.prices)),
                feed=feed,
                objects_url=objects.url,
                parameters_url=place.parameters,
            )
            if self._stop_requested:
                await scheduler.request_stop()
            watch = asyncio.create_task(_watch(place, scheduler))
            try:
                outcome = await scheduler.run()
            except asyncio.CancelledError:
                progress.state = "stopped"
                await job.end("stopped", _AT_ONCE, job.state.parent)
                stopped = Outcome("stopped", _AT_ONCE, job.state.parent, None, job.state.generation)
                folder.write_summary(await summarise(progress, stopped, objects, folder))
                raise
            finally:
                self._scheduler = None
                watch.cancel()
                # Expiry would free what is left, but later; a store that is gone is not waited for.
                with contextlib.suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(_REACH_S):
                        await store.sweep(job_prefix(progress.job_id))
            progress.state = outcome.status
            feed.event("end", status=outcome.status, message=outcome.message)
        if outcome.failure is not None and outcome.failure.kind == "user":
            raise UserError(outcome.message)
        summary = await summarise(progress, outcome, objects, folder)
        folder.write_summary(summary)
        return summary

    @asynccontextmanager
    async def _place(
        self, run_dir: Path, folder: RunFolder, target: Target
    ) -> AsyncIterator[_Place]:
        """Open the cloud that the settings ask for."""
        config = self._config
        if config.inline:
            url = config.parameters or f"memory://{self.progress.job_id}"
            async with InlineCloud(target.root) as inline:
                yield _Place(inline, url)
            return
        embedded = EmbeddedCloud(
            folder.cloud,
            parameter_store=config.parameters is None,
            linger_s=_LINGER_S,
            visible=[run_dir],
        )
        async with embedded:
            self.progress.notices.extend(embedded.notices)
            endpoint = Endpoint(url=embedded.endpoint, access_key="local", secret_key="local")
            async with lambda_client(endpoint) as cloud:
                url = config.parameters or str(embedded.parameters)
                yield _Place(cloud, url, embedded.ended)


async def _watch(place: _Place, scheduler: TaskScheduler) -> None:
    if place.ended is not None:
        scheduler.give_up(Failure(kind="cloud", message=await place.ended()))


async def _check_server(url: str) -> None:
    """Find out before anything is started that the server cannot be reached, and soon."""
    async with open_parameter_store(url, time_limit_s=_REACH_S) as store:
        await store.values(["smlt"])


async def _check_objects(url: str) -> None:
    """Find out before anything is started that the object store cannot be used."""
    async with open_object_store(url) as store:
        async for _ in store.list("code/none"):
            return


@contextmanager
def _disk_errors(run_dir: Path) -> Iterator[None]:
    """Say in a sentence what the disk of the run directory refused."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise StoreFullError(f"cannot write to the run directory {run_dir}: {error}") from error
