"""What is done to a job after its start: attach, stop, resume, list and clean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import smlt
from smlt.cli.jobs import JobFolder, JobRecord, process_is_alive
from smlt.cli.summary import to_json
from smlt.cli.train import EXIT_CODES, foreground
from smlt.cli.wording import clock_time, print_plain
from smlt.config import find_run_dir
from smlt.config.resume import ResumeConfig
from smlt.config.values import Duration, typed
from smlt.errors import UserError

RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Where jobs are kept [.smlt].")
]
JobId = Annotated[
    str | None, typer.Argument(metavar="JOB", help="Its id, or how it begins [the newest].")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Parameters = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The job's own Valkey, where it was started with one."),
]
Given = str | None

ENDED = ("completed", "stopped", "failed")


def attach(
    job_id: JobId = None,
    parameters: Parameters = None,
    run_dir: RunDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Take over a job whose client is gone, and follow it to its end.

    The workers' running step is all that is lost. A job that its client still leads is left alone.
    """
    where = find_run_dir(run_dir)
    job = job_folder(run_dir).find(job_id)
    session = smlt.Continuation(where, job.job_id, parameters=parameters)
    return foreground(session, where, as_json=as_json, quiet=quiet)


def resume(
    context: typer.Context,
    job_id: JobId = None,
    workers: Annotated[Given, typer.Option(metavar="N", help="Functions at a time.")] = None,
    memory_mb: Annotated[Given, typer.Option(metavar="MB", help="Memory of each.")] = None,
    aggregators: Annotated[
        Given, typer.Option(metavar="N", help="Workers that average shards.")
    ] = None,
    wire_dtype: Annotated[
        Given, typer.Option(metavar="TYPE", help="Send gradients as fp32, bf16 or fp16.")
    ] = None,
    epochs: Annotated[Given, typer.Option(metavar="N", help="End after so many in all.")] = None,
    steps: Annotated[Given, typer.Option(metavar="N", help="End after so many in all.")] = None,
    deadline: Annotated[
        Given, typer.Option(metavar="TIME", help="Another one, counted from the first start.")
    ] = None,
    budget: Annotated[
        Given, typer.Option(metavar="USD", help="Another one, for the whole job.")
    ] = None,
    parameters: Parameters = None,
    run_dir: RunDir = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Go on with a job from its newest checkpoint, also one that has ended.

    A job that is complete goes on when it is given more --epochs or --steps.
    """
    where = find_run_dir(run_dir)
    changes = ResumeConfig.load(context.params)
    job = job_folder(run_dir).find(job_id)
    session = smlt.Continuation(where, job.job_id, changes=changes, parameters=parameters)
    return foreground(session, where, as_json=as_json, quiet=quiet)


def stop(
    job_id: JobId = None,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for the step: within 10 seconds.")
    ] = False,
    parameters: Parameters = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> int:
    """End a job after its current step, with its checkpoint, whoever leads it."""
    where = find_run_dir(run_dir)
    job = job_folder(run_dir).find(job_id)
    return asyncio.run(_stop(where, job.job_id, parameters, now=now, as_json=as_json))


async def _stop(
    where: Path, job_id: str, parameters: str | None, *, now: bool, as_json: bool
) -> int:
    kept = smlt.KeptJobs(where)
    if not await kept.ask_to_stop(job_id, now=now):
        raise UserError(f"Job {job_id} has ended already; `smlt status {job_id}` tells how.")
    if not as_json:
        print(f"Stopping job {job_id} {'at once' if now else 'after its step'} …", file=sys.stderr)
    state = await kept.until_ended(job_id)
    if state is None:
        # Nobody leads it: become its client for as long as its end takes.
        summary = await smlt.Continuation(where, job_id, parameters=parameters).train()
        status, message = summary.state, summary.message
    else:
        status, message = state.status, state.ending
    if as_json:
        print(to_json({"job_id": job_id, "state": status, "message": message}))
    else:
        print(f"{status} job {job_id}: {message}")
    return 0 if status in ("stopped", "completed") else EXIT_CODES[status]


def list_jobs(run_dir: RunDir = None, as_json: Json = False) -> int:
    """List the jobs of the run directory, the newest first."""
    where = find_run_dir(run_dir)
    records = job_folder(run_dir).all()
    sizes = asyncio.run(_sizes(where, records))
    now = time.time()
    rows = [
        {
            "job_id": record.job_id,
            "state": record.state,
            "step": record.summary.steps if record.summary else record.progress.step,
            "age_s": max(0.0, now - record.started),
            "bytes": size,
        }
        for record, size in zip(records, sizes, strict=True)
    ]
    if as_json:
        print(to_json(rows))
        return 0
    if not rows:
        print(f"There are no jobs in {where}.")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("job", min_width=max(len(record.job_id) for record in records))
    for heading in ("state", "step", "age", "size"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for record, row, size in zip(records, rows, sizes, strict=True):
        age = clock_time(now - record.started)
        table.add_row(record.job_id, record.state, f"{row['step']:,}", age, _in_words(size))
    Console().print(table)
    return 0


list_jobs.__name__ = "jobs"


def clean(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]...", help="These only [all that ended].")
    ] = None,
    older_than: Annotated[
        Given, typer.Option(metavar="TIME", help="Only jobs that began so long ago, as in 7d.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> int:
    """Remove jobs that have ended: their checkpoints, models and logs. A running one is kept."""
    where = find_run_dir(run_dir)
    folder = job_folder(run_dir)
    least_s = 0.0 if older_than is None else typed(older_than, Duration, "--older-than")
    records = [folder.find(job_id) for job_id in job_ids] if job_ids else folder.all()
    for record in records if job_ids else ():
        if record.state not in ENDED:
            raise UserError(f"Job {record.job_id} is {record.state}: end it first, `smlt stop`.")
    now = time.time()
    chosen = [r for r in records if r.state in ENDED and now - r.started >= least_s]
    sizes = asyncio.run(_sizes(where, chosen))
    if not dry_run:
        asyncio.run(_remove(where, chosen))
    if as_json:
        ids = [record.job_id for record in chosen]
        print(to_json({"removed": [] if dry_run else ids, "chosen": ids, "bytes": sum(sizes)}))
        return 0
    verb = "would remove" if dry_run else "removed"
    rest = len(folder.all()) - (len(chosen) if dry_run else 0)
    for record, size in zip(chosen, sizes, strict=True):
        print_plain(Console(), f"{verb} {record.job_id} ({record.state}, {_in_words(size)})")
    count = f"{len(chosen)} job{'' if len(chosen) == 1 else 's'}"
    print(f"{verb} {count}, {_in_words(sum(sizes))}; kept {rest}")
    return 0


COMMANDS = (attach, stop, resume, list_jobs, clean)


async def _remove(where: Path, records: list[JobRecord]) -> None:
    kept = smlt.KeptJobs(where)
    for record in records:
        await kept.remove(record.job_id)


async def _sizes(where: Path, records: list[JobRecord]) -> list[int]:
    kept = smlt.KeptJobs(where)
    return [await kept.size(r.job_id) + _folder_bytes(r.folder) for r in records]


def _folder_bytes(folder: Path) -> int:
    size = 0
    for top, _, names in os.walk(folder):
        for name in names:
            # A job that runs replaces its files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                size += Path(top, name).stat().st_size
    return size


def _in_words(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def job_folder(run_dir: Path | None) -> JobFolder:
    """Open the jobs of the run directory that the settings name."""
    return JobFolder(find_run_dir(run_dir), time.time, process_is_alive)
