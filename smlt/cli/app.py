"""The commands and their options, and how each kind of error reaches the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

import smlt
from smlt.cli import aws, jobs, lifecycle, plan
from smlt.cli.crash import keep_traceback
from smlt.cli.summary import to_json
from smlt.cli.train import OpenSession, train
from smlt.config import DEFAULT_RUN_DIR, TrainConfig
from smlt.errors import SmltError, UserError

app = typer.Typer(
    name="smlt",
    help="Train machine-learning models on serverless functions.",
    add_completion=False,
    rich_markup_mode=None,  # brackets in the help are brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Every option is text here: TrainConfig reads all sources alike, so that a bad value is refused
# in the same words wherever it stands.
Given = str | None
Switch = bool | None


def main(arguments: Sequence[str] | None = None, *, open_session: OpenSession | None = None) -> int:
    """Run the command line and return its exit code; lets no exception through.

    Args:
        arguments: by default those of the process.
        open_session: makes a session from a TrainConfig; by default ``smlt.Session``.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(given, prog_name="smlt", standalone_mode=False, obj=open_session)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as exc:
        return _complain(str(exc), 2)
    except SmltError as exc:
        return _complain(str(exc), 1)
    except typer.TyperException as exc:
        sentence = exc.format_message()
        stop = "" if sentence.endswith((".", "?")) else "."
        return _complain(f"{sentence}{stop} See `smlt --help`.", exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # A reader such as `head` has gone; without this, the flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as exc:
        return _complain(keep_traceback(exc, DEFAULT_RUN_DIR), 1)


def _complain(sentence: str, code: int) -> int:
    print(f"smlt: {sentence}", file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    if version:
        return _version()
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)
    return 0


@app.command("train")
def _train(
    context: typer.Context,
    target: Annotated[
        Given, typer.Argument(metavar="TARGET", help="The task: file.py:Class or module:Class.")
    ] = None,
    data: Annotated[
        Given,
        typer.Option(metavar="DIR", help="The data; by default data/ beside the task's file."),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="For the task's constructor; repeat."),
    ] = None,
    workers: Annotated[Given, typer.Option(metavar="N", help="Functions at a time [4].")] = None,
    memory_mb: Annotated[
        Given, typer.Option(metavar="MB", help="Memory of each; 1769 buy one vCPU [1769].")
    ] = None,
    deadline: Annotated[
        Given, typer.Option(metavar="TIME", help="Be done within it, as in 30m; at least cost.")
    ] = None,
    budget: Annotated[
        Given, typer.Option(metavar="USD", help="Cost no more, as in 2.50; be done soonest.")
    ] = None,
    adapt: Annotated[
        Switch,
        typer.Option(
            "--adapt/--no-adapt",
            help="Change workers and memory as is best [with --deadline or --budget].",
        ),
    ] = None,
    max_workers: Annotated[
        Given, typer.Option(metavar="N", help="The most when adapting [--virtual-workers].")
    ] = None,
    prices: Annotated[
        Given, typer.Option(metavar="FILE", help="Your own rates, as in smlt/control/prices.toml.")
    ] = None,
    epochs: Annotated[
        Given, typer.Option(metavar="N", help="[1, unless --steps or --until is given]")
    ] = None,
    steps: Annotated[Given, typer.Option(metavar="N", help="End after this many.")] = None,
    until: Annotated[
        Given, typer.Option(metavar="BOUND", help="End when met, as in 'accuracy>=0.95'.")
    ] = None,
    patience: Annotated[
        Given, typer.Option(metavar="N", help="End after N evaluations without a better metric.")
    ] = None,
    keep_best: Annotated[
        Given, typer.Option(metavar="METRIC[:min]", help="Keep the weights best by it, too.")
    ] = None,
    init_from: Annotated[
        Given, typer.Option(metavar="FILE", help="Weights to begin from, .safetensors.")
    ] = None,
    batch_size: Annotated[
        Given, typer.Option(metavar="N", help="Samples a step, over all workers [64].")
    ] = None,
    seed: Annotated[Given, typer.Option(metavar="N", help="Decides all randomness [0].")] = None,
    aggregators: Annotated[
        Given, typer.Option(metavar="N", help="Workers that average shards [all].")
    ] = None,
    shard_mb: Annotated[
        Given, typer.Option(metavar="MB", help="Largest shard of a gradient [4].")
    ] = None,
    wire_dtype: Annotated[
        Given, typer.Option(metavar="TYPE", help="Send gradients as bf16 or fp16 [fp32].")
    ] = None,
    virtual_workers: Annotated[
        Given, typer.Option(metavar="N", help="Parts of the data, a power of two [16 or more].")
    ] = None,
    objects: Annotated[
        Given, typer.Option(metavar="URL", help="s3://bucket/prefix; by default the run directory.")
    ] = None,
    s3_endpoint: Annotated[
        Given, typer.Option("--s3-endpoint", metavar="URL", help="An S3-compatible service [AWS].")
    ] = None,
    determinism: Annotated[
        Given,
        typer.Option(
            metavar="exact|fast", help="Same bits for any number of workers, or a fixed one [fast]."
        ),
    ] = None,
    keep_checkpoints: Annotated[
        Given, typer.Option(metavar="N", help="How many of the newest stay [3].")
    ] = None,
    parameters: Annotated[
        Given, typer.Option(metavar="URL", help="A running Valkey; by default one is started.")
    ] = None,
    link_mbps: Annotated[
        Given,
        typer.Option(metavar="MB", help="Pace a worker's link to it; Lambda's has about 70 MB/s."),
    ] = None,
    run_dir: Annotated[
        Given, typer.Option(metavar="DIR", help="Where jobs are kept [.smlt].")
    ] = None,
    platform: Annotated[
        Given, typer.Option(metavar="local|aws", help="Where functions run [local].")
    ] = None,
    yes: Annotated[
        Switch, typer.Option("--yes/--no-yes", help="Start on AWS without --budget, unasked.")
    ] = None,
    chaos: Annotated[
        Given,
        typer.Option(metavar="SEED", help="Have the embedded Lambda misbehave, to try the job."),
    ] = None,
    orphan_timeout: Annotated[
        Given,
        typer.Option(metavar="TIME", help="Workers go on so long without a client [5s]."),
    ] = None,
    function_timeout: Annotated[
        Given,
        typer.Option(metavar="TIME", help="Limit of one function; the job is longer [15m]."),
    ] = None,
    inline: Annotated[
        Switch,
        typer.Option("--inline/--no-inline", help="One rank in this process, for a debugger."),
    ] = None,
    trace: Annotated[
        Switch, typer.Option("--trace/--no-trace", help="Log when each shard went and came.")
    ] = None,
    json: Annotated[
        Switch, typer.Option("--json/--no-json", help="Print the summary as one JSON object.")
    ] = None,
    quiet: Annotated[Switch, typer.Option("--quiet/--no-quiet", help="Show no progress.")] = None,
) -> int:
    """Train a model on serverless functions.

    They are Lambda functions, by default of a Lambda service that runs on this machine.
    Options may also stand in the [train] table of smlt.toml, or in variables like SMLT_WORKERS.
    """
    config = TrainConfig.load(context.params)
    if config.platform == "aws":
        config = aws.confirmed(config)
    return train(config, context.obj or smlt.Session)


app.command("plan")(plan.with_options_of(_train, plan.PLANNED, plan.plan))
app.command("tune")(plan.with_options_of(_train, None, plan.tune))


@app.command("status")
def _status(
    job_id: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Its id, or how it begins [the newest].")
    ] = None,
    run_dir: lifecycle.RunDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show where a job stands, or how it ended."""
    folder = lifecycle.job_folder(run_dir)
    job = folder.find(job_id)
    if as_json:
        print(to_json(job.to_dict()))
        return 0
    console = Console()
    others = folder.all() if job_id is None else []
    if len(others) > 1:
        jobs.print_table(others, console)
        console.print()
    jobs.print_job(job, console)
    return 0


@app.command("logs")
def _logs(
    job_id: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Its id, or how it begins [the newest].")
    ] = None,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Of this worker only.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as they print more, until the job ends.")
    ] = False,
    run_dir: lifecycle.RunDir = None,
) -> int:
    """Print what a job's workers have printed."""
    folder = lifecycle.job_folder(run_dir)
    job = folder.find(job_id)
    if follow:
        for line in jobs.follow_logs(lambda: folder.find(job.job_id), rank):
            print(line, flush=True)
    else:
        for line in jobs.log_lines(job, rank):
            print(line)
    return 0


for command in (*lifecycle.COMMANDS, *aws.COMMANDS):
    app.command()(command)


@app.command("version")
def _version() -> int:
    """Print the version."""
    print(f"smlt {smlt.__version__}")
    return 0
