"""``smlt plan`` and ``smlt tune``: what a job would take and cost, and by which plan."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from smlt.cli.front_chart import draw
from smlt.cli.lifecycle import job_folder
from smlt.cli.summary import failure_text, to_json
from smlt.cli.train import EXIT_CODES, to_its_end
from smlt.cli.train_options import NAMES
from smlt.cli.wording import clock_time, print_plain
from smlt.config import TrainConfig
from smlt.config.limits import CONCURRENCY_LIMIT, MEMORY_MB
from smlt.control.goals import size
from smlt.control.progress import Summary
from smlt.errors import ConfigError, UserError
from smlt.messages.job import ResourcePlan
from smlt.report.events import read_events

if TYPE_CHECKING:  # SciPy is behind them, for which other commands need not wait
    from smlt.control.forecast import Forecast
    from smlt.planning import PlanReport
    from smlt.tuning import Tuning

PLANNED = (
    "target", "data", "params", "workers", "memory_mb", "deadline", "budget", "max_workers",
    "prices", "epochs", "steps", "batch_size", "seed", "aggregators", "shard_mb", "wire_dtype",
    "tune", "s3_endpoint", "virtual_workers", "determinism", "run_dir", "json",
)  # fmt: skip
"""The options of ``smlt train`` that a plan depends on."""
TUNED = tuple(name for name in NAMES if name not in ("adapt", "inline", "watch"))
_MEASURED = re.compile(r"(\d+)x(\d+)=(\d*\.?\d+(?:[eE][+-]?\d+)?)s?")
_LONGEST_S = 1e6  # a step of eleven days is none
_ADAPTS = {"adapt": True}
_WARM_UP = 1  # steps of a generation, which load and compile


def plan(
    context: typer.Context,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time some steps on this machine first.")
    ] = False,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NxMB=SECONDS", help="A step's time that is known, as in 4x1769=1.2; repeat."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="JOB", help="Take step times from this job, which has run."),
    ] = None,
    node: Annotated[
        str, typer.Option(metavar="TYPE", help="ElastiCache node that Valkey is to run on.")
    ] = "cache.r7g.large",
    every: Annotated[
        bool, typer.Option("--all", help="Print all plans, not only those worth choosing.")
    ] = False,
) -> int:
    """Say what a job would take and cost on AWS Lambda, and by which plan. Nothing is started."""
    config = TrainConfig.load({name: context.params.get(name) for name in PLANNED} | _ADAPTS)
    known = _from_job(config.run_dir, like) if like is not None else {}
    known |= dict(map(_parse_measured, measured or ()))
    planning = import_module("smlt.planning")
    report = planning.Planning(config, measured=known, profile=profile, node=node).report()
    if config.json:
        print(to_json(report.to_dict()))
    else:
        _print_report(report, Console(), every=every)
    return 0


def tune(
    context: typer.Context,
    surrogate: Annotated[
        str, typer.Option(metavar="NAME", help="Gaussian process: sampled or skopt.")
    ] = "sampled",
) -> int:
    """Try plans on a job's first steps, name the best, and stop; `smlt resume` goes on from there.

    It takes the options of `smlt train`. The steps are real ones, and are not lost.
    """
    given = {name: value for name, value in context.params.items() if name != "surrogate"}
    config = TrainConfig.load(given | _ADAPTS)
    session: Tuning = import_module("smlt.tuning").Tuning(config, surrogate=surrogate)
    console = Console(stderr=True)
    summary = to_its_end(session, config.run_dir, console, quiet=config.quiet)
    if config.json:
        print(to_json(summary.to_dict() | _tuned(session)))
    elif summary.state == "failed":
        print_plain(console, failure_text(summary, None))
    else:
        _print_trials(session, summary, Console())
    return 0 if session.is_tuned else EXIT_CODES[summary.state]


def _parse_measured(text: str) -> tuple[ResourcePlan, float]:
    match = _MEASURED.fullmatch(text.strip())
    low, high = MEMORY_MB
    if match is not None:
        workers, memory_mb, seconds = int(match[1]), int(match[2]), float(match[3])
        if (
            1 <= workers <= CONCURRENCY_LIMIT
            and low <= memory_mb <= high
            and 0 < seconds <= _LONGEST_S
        ):
            return ResourcePlan(workers=workers, memory_mb=memory_mb), seconds
    raise ConfigError(
        f"--measured is {text!r}: write workers (1 to {CONCURRENCY_LIMIT:,}), memory ({low} to "
        f"{high:,} MB) and the seconds of a step, as in 4x1769=1.2."
    )


def _from_job(run_dir: Path, job_id: str) -> dict[ResourcePlan, float]:
    """Read from a job's events how long its steps took, by plan."""
    job = job_folder(run_dir).find(job_id)
    times: dict[ResourcePlan, list[float]] = defaultdict(list)
    running, skipped = None, 0
    for event in read_events(job.folder / "events.jsonl"):
        if event.name == "generation":
            running, skipped = ResourcePlan.from_dict(event.fields), 0
        elif event.name == "step" and running is not None:
            if skipped >= _WARM_UP:
                times[running].append(float(event.fields["seconds"]))
            skipped += 1
    if not times:
        raise UserError(f"Job {job.job_id} has too few steps to tell how long they take.")
    return {plan: statistics.median(seconds) for plan, seconds in times.items()}


def _print_report(report: PlanReport, console: Console, *, every: bool) -> None:
    work = report.workload
    print(
        f"{work.steps:,} steps of {work.batch_size:,} samples, {work.gradient_bytes / 1e6:,.1f} MB "
        f"of gradient. Step times: {report.basis}."
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    exchanged = _exchange_headings(report.best.plan)
    for heading in ("", "workers", "memory", *exchanged, "step", "time", "90 % within", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.plans:
        if every or row.on_front or row.plan == report.best.plan:
            table.add_row(*_cells(row, report))
    console.print(table)
    print(draw(report.plans, report.best))
    best, on_s3 = report.best, report.best_on_s3
    print(
        f"Recommended: {_options(best.plan)}, {_in_short(best)}, with Valkey on a {report.node}, "
        "of whose hours this is the job's share (each that has begun is billed)."
    )
    print(f"With S3 instead of Valkey: {_options(on_s3.plan)}, {_in_short(on_s3)}.")
    for notice in report.notices:
        print(f"Note: {notice}.")


def _cells(row: Forecast, report: PlanReport) -> list[str]:
    mark = "★" if row.plan == report.best.plan else "●" if row.on_front else ""
    return [
        mark,
        f"{row.plan.workers:,}",
        f"{row.plan.memory_mb:,} MB",
        *_exchange(row.plan),
        f"{row.step_s:.3g} s",
        clock_time(row.time_s),
        f"{clock_time(row.least_s)}–{clock_time(row.most_s)}",
        f"${row.cost_usd:.4f}" + ("" if row.meets_goals else " ✗"),
    ]


def _exchange_headings(plan: ResourcePlan) -> list[str]:
    """Name what plans say of the exchange of gradients, where that is theirs to decide."""
    told = {"aggregators": plan.aggregators, "wire": plan.wire_dtype}
    return [heading for heading, value in told.items() if value is not None]


def _exchange(plan: ResourcePlan) -> list[str]:
    return [str(value) for value in (plan.aggregators, plan.wire_dtype) if value is not None]


def _options(plan: ResourcePlan) -> str:
    options = f"--workers {plan.workers} --memory-mb {plan.memory_mb}"
    if plan.aggregators is not None:
        options += f" --aggregators {plan.aggregators}"
    return options if plan.wire_dtype is None else f"{options} --wire-dtype {plan.wire_dtype}"


def _in_short(row: Forecast) -> str:
    return f"about {clock_time(row.time_s)} and ${row.cost_usd:.4g}"


def _tuned(session: Tuning) -> dict[str, Any]:
    best = session.best
    return {
        "trials": [trial.to_dict() for trial in session.trials],
        "best": None if best is None else best.plan.to_dict(),
    }


def _print_trials(session: Tuning, summary: Summary, console: Console) -> None:
    print(f"{summary.state} job {summary.job_id}: {summary.message}")
    best = session.best
    if best is None:
        print("Too few steps were taken to tell how long they take.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in (
        "", "workers", "memory", *_exchange_headings(best.plan), "step", "cost of 1,000 steps",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in session.trials:
        table.add_row(
            "★" if trial.plan == best.plan else "",
            f"{trial.plan.workers:,}",
            f"{trial.plan.memory_mb:,} MB",
            *_exchange(trial.plan),
            f"{trial.step_s:.3g} s",
            f"${1000 * trial.step_usd:.4g}",
        )
    console.print(table)
    if summary.state == "stopped":
        tried = "" if best.plan in {trial.plan for trial in session.trials} else ", not tried yet"
        print(
            f"Go on with {size(best.plan)}{tried}: smlt resume {summary.job_id} "
            f"{_options(best.plan)}"
        )
