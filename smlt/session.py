"""The composition root: builds stores, cloud and scheduler for a job, and joins them."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from smlt.aws.shipment import Sending, Shipment, prepare
from smlt.config import TrainConfig
from smlt.config.aws import AwsConfig
from smlt.control import artifact_manager
from smlt.control.artifact_manager import CodePackage, Target
from smlt.control.data_mirror import DataMirror
from smlt.control.job import Job, new_job_id, this_client
from smlt.control.job_settings import first_plan, training_settings
from smlt.control.prices import read_prices
from smlt.control.progress import Summary
from smlt.control.run_folder import RunFolder
from smlt.errors import ConfigError
from smlt.io.object_store import ObjectStore
from smlt.io.stores import open_object_store
from smlt.lead import Lead, check_objects, disk_errors
from smlt.messages.job import JobSpec
from smlt.place import Place, aws_place, check_server, embedded_place, inline_place, reaches
from smlt.worker.task_loader import find_class
from smlt.worker.task_params import parse_params

AWS_START_S = 180.0


class Session(Lead):
    """One training job, from its settings to its summary."""

    def __init__(
        self,
        config: TrainConfig,
        aws: AwsConfig | None = None,
        *,
        pause_after: int | None = None,
    ) -> None:
        """Take the settings of a job.

        Args:
            config: what to train, and how.
            aws: settings about AWS; by default they are looked for as usual.
            pause_after: so many epochs, of those that the job has, it stops, to be gone on with.
        """
        super().__init__(config.prices)
        self._config = config
        self._pause_after = pause_after
        if aws is None and config.platform == "aws":
            aws = AwsConfig.load({})
        self._aws = aws if config.platform == "aws" else None
        self._is_near = True
        """Whether the parameter store of a job on AWS can be reached from here."""

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
        data = await self._data(target)
        artifact_manager.check_weights(config.init_from)
        self._check_prices()
        run_dir = config.run_dir.resolve()
        skip = [run_dir, data or target.folder / "data"]
        package = await asyncio.to_thread(self._pack, target, data, skip)
        progress.job_id = new_job_id(target.reference.rpartition(":")[2])
        progress.epochs = config.epochs
        self._running = asyncio.current_task()
        objects_url = config.object_store or (run_dir / "objects").as_uri()
        await self._reach_stores(objects_url)
        async with AsyncExitStack() as stack:
            stack.enter_context(disk_errors(run_dir))
            folder = RunFolder.create(run_dir, progress.job_id, objects_url)
            if config.watch and data is not None:
                folder.watch(config.remote_data or str(data))
            objects = await stack.enter_async_context(open_object_store(objects_url))
            objects = self._patient(objects)
            await self._upload(package, objects)
            spec = await self._spec(objects, target, params, package, data)
            async with self._place(run_dir, folder, target, spec, package) as place:
                job = await Job.create(
                    objects, progress.job_id, spec, first_plan(config), this_client()
                )
                return await self._lead(job, objects, place, folder)

    async def _data(self, target: Target) -> Path | None:
        """Return the data that are here to be sent; not those in a file system of the functions."""
        remote = self._config.remote_data
        if remote is not None:
            return await DataMirror(remote, self._config.run_dir.resolve()).refresh()
        is_here = self._aws is None or self._aws.efs is None
        data = artifact_manager.find_data(target, self._config.data_folder) if is_here else None
        if self._config.watch and (data is None or not data.is_dir()):
            raise ConfigError(
                f"there is no folder to watch: give one with --data, or make {target.folder}/data"
            )
        return data

    def _check_prices(self) -> None:
        prices = read_prices(self._config.prices)
        if self._config.cache_node is not None:
            prices.rate("elasticache", "nodes", self._config.cache_node)

    async def _reach_stores(self, objects_url: str) -> None:
        """Find out before anything is started that a store which was named does not answer."""
        parameters = self._config.parameter_store
        if parameters is not None and self._aws is not None:
            self._is_near = await reaches(parameters)
        elif parameters is not None:
            await check_server(parameters)
        if self._config.objects is not None:
            await check_objects(objects_url)

    async def _upload(self, package: CodePackage | Shipment, objects: ObjectStore) -> None:
        if isinstance(package, Shipment):
            await package.upload(objects, self._on_sending)
            self.progress.stalled = ""
        else:
            await package.upload(objects)

    async def _spec(
        self,
        objects: ObjectStore,
        target: Target,
        params: dict[str, Any],
        package: CodePackage | Shipment,
        data: Path | None,
    ) -> JobSpec:
        """Return what the job is to do, with its data and weights in the object store."""
        spec = JobSpec(
            target=target.reference,
            params=params,
            code=package.code,
            data=None if data is None else await artifact_manager.upload_data(objects, data),
            init_from=await artifact_manager.upload_weights(objects, self._config.init_from),
            pause_after=self._pause_after,
            # AWS's functions have cores of their own.
            **training_settings(self._config, os.cpu_count() if self._aws is None else None),
        )
        if isinstance(package, Shipment):
            # A first call may have packages to fetch, and a network interface to wait for.
            spec = replace(spec, limits=replace(spec.limits, start_s=AWS_START_S))
        return spec

    def _on_sending(self, sending: Sending) -> None:
        self.progress.stalled = f"{sending}: {100 * sending.done // max(1, sending.size)} %"

    def _pack(self, target: Target, data: Path | None, skip: list[Path]) -> CodePackage | Shipment:
        if self._aws is None:
            return artifact_manager.pack_code(target, skip)
        return prepare(target, data, skip, self._config, self._aws)

    def _place(
        self,
        run_dir: Path,
        folder: RunFolder,
        target: Target,
        spec: JobSpec,
        package: CodePackage | Shipment,
    ) -> AbstractAsyncContextManager[Place]:
        """Choose the cloud that the settings ask for."""
        parameters = self._config.parameter_store
        if isinstance(package, Shipment):
            folder.write_release(package.release.to_dict())
            release = package.release
            near, parts = self._is_near, package.package
            return aws_place(release, spec, release.parameters, is_near=near, package=parts)
        if self._config.inline:
            return inline_place(target.root, self.progress.job_id, parameters)
        chaos = self._config.chaos
        return embedded_place(run_dir, folder, spec, package.data, parameters, chaos)
