"""The commands and their options, and how each kind of error reaches the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

import smlt
from smlt.cli import aws, jobs, lifecycle, plan, search
from smlt.cli.crash import keep_traceback
from smlt.cli.summary import to_json
from smlt.cli.train import OpenSession, train
from smlt.cli.train_options import NAMES, with_options
from smlt.config import DEFAULT_RUN_DIR, TrainConfig
from smlt.errors import SmltError, UserError

app = typer.Typer(
    name="smlt",
    help="Train machine-learning models on serverless functions.",
    add_completion=False,
    rich_markup_mode=None,  # brackets in the help are brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def _train(context: typer.Context) -> int:
    """Train a model on serverless functions.

    They are Lambda functions, by default of a Lambda service that runs on this machine.
    Options may also stand in the [train] table of smlt.toml, or in variables like SMLT_WORKERS.
    """
    config = TrainConfig.load(context.params)
    if config.platform == "aws":
        config = aws.confirmed(config)
    return train(config, context.obj or smlt.Session)


app.command("train")(with_options(NAMES, _train))
app.command("plan")(with_options(plan.PLANNED, plan.plan))
app.command("tune")(with_options(plan.TUNED, plan.tune))
app.command("search")(with_options(search.SEARCHED, search.search))


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
