"""Bring home what a job has made, and sum it up."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

from smlt.control.progress import Progress, Summary
from smlt.control.run_folder import RunFolder
from smlt.control.task_scheduler import Outcome
from smlt.errors import CheckpointError, NotFoundError, StoreError
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.state_digest import weights_digest
from smlt.io.weights import read_weights, unpack_weights, write_weights_file


async def summarise(
    progress: Progress, outcome: Outcome, objects: ObjectStore, folder: RunFolder
) -> Summary:
    """Copy the model, and the best one if there is one, into the run folder; return the summary.

    Raises:
        StoreError: the job is complete, and its model is not there.
    """
    job = JobObjects(progress.job_id)
    model = await _bring(objects, job.model, folder.model)
    if outcome.status == "completed" and model is None:
        raise StoreError(
            f"training is complete, but {job.model} has been deleted from {objects.url} since: "
            f"`smlt resume {progress.job_id}` with more --steps writes it again"
        )
    best = None
    if outcome.status != "failed":
        best = await _bring_best(objects, job.best, folder.best_model)
    digest = None
    if model is not None:
        digest = weights_digest(unpack_weights(model.read_bytes(), str(model)))
    newest = outcome.newest
    manifest = newest and objects.local_path(job.manifest(newest.generation, newest.step))
    steps = progress.step
    if newest is not None:
        # What is kept counts: a rank may have saved a step that no report tells of.
        with contextlib.suppress(CheckpointError):  # which may be why the job failed
            kept = await checkpoint.read_manifest(objects, progress.job_id, newest)
            steps = max(steps, kept.info.get("trained", 0))
    return replace(
        progress.summary(outcome.status, outcome.message),
        steps=steps,
        epochs=progress.epoch + 1 if steps else 0,
        generations=outcome.generations,
        weights_digest=digest,
        model_path=None if model is None else str(model),
        best_model_path=None if best is None else str(best),
        checkpoint=str(manifest.parent) if manifest else None,
        traceback=outcome.failure.traceback if outcome.failure else "",
    )


async def _bring(objects: ObjectStore, key: str, path: Path) -> Path | None:
    """Copy an object to a local file, if it exists."""
    if await objects.head(key) is None:
        return None
    local = objects.local_path(key)
    if local is not None:
        await asyncio.to_thread(shutil.copyfile, local, path)
    else:
        data, _ = await objects.get(key)
        await asyncio.to_thread(path.write_bytes, data)
    return path


async def _bring_best(objects: ObjectStore, key: str, path: Path) -> Path | None:
    """Write the best weights to a local file, if there are any.

    It does not say in which generation they were: the file is the same whatever a job went through.
    """
    try:
        weights = await read_weights(objects, key)
    except NotFoundError:
        return None
    await asyncio.to_thread(write_weights_file, path, weights)
    return path
