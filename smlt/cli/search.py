"""``smlt search``: candidates from the command line, and a table of how they did."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from smlt.cli.summary import failure_text, to_json
from smlt.cli.train import EXIT_CODES, to_its_end
from smlt.cli.train_options import NAMES
from smlt.cli.wording import print_plain
from smlt.config import TrainConfig
from smlt.errors import ConfigError

if TYPE_CHECKING:  # a search imports what trains, for which other commands need not wait
    from smlt.search import Search

SEARCHED = tuple(
    name for name in NAMES if name not in ("steps", "until", "patience", "inline", "watch")
)


def search(
    context: typer.Context,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="NAME=A,B,…",
            help="Values of a parameter; repeat for all combinations.",
        ),
    ] = None,
    divide: Annotated[
        int, typer.Option(metavar="N", help="One candidate in N goes on to N times the epochs.")
    ] = 2,
) -> int:
    """Search the best of several models within one --budget and --deadline, by --keep-best METRIC.

    All candidates are trained a little, and the better ones further: successive halving.
    """
    config = TrainConfig.load({name: context.params.get(name) for name in SEARCHED})
    session: Search = import_module("smlt.search").Search(
        config, combinations(tries or ()), factor=divide
    )
    console = Console(stderr=True)
    summary = to_its_end(session, config.run_dir, console, quiet=config.quiet)
    if config.json:
        found = {"candidates": [candidate.to_dict() for candidate in session.candidates]}
        print(to_json(summary.to_dict() | found))
    elif summary.state == "failed":
        print_plain(console, failure_text(summary, None))
    else:
        _print(session, summary.message, Console())
    return EXIT_CODES[summary.state]


def combinations(tries: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the candidates of ``["width=16,32", "depth=1,2"]``: every value with every other.

    Raises:
        ConfigError: one of them has another form.
    """
    choices = []
    for text in tries:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier() or not all(values.split(",")):
            raise ConfigError(f"--try is {text!r}: write NAME=A,B, as in --try width=16,32.")
        choices.append([f"{name}={value.strip()}" for value in values.split(",")])
    if not choices:
        raise ConfigError("Give what to search with --try, as in --try width=16,32.")
    return list(itertools.product(*choices))


def _print(session: Search, message: str, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("candidate")
    for heading in ("epochs", session.metric, "cost"):
        table.add_column(heading, justify="right")
    table.add_column("job")
    for candidate in session.ranking:
        score = "failed" if candidate.score is None else f"{candidate.score:.4g}"
        table.add_row(
            " ".join(candidate.params),
            str(candidate.epochs),
            score,
            f"${candidate.spent_usd:.4f}",
            candidate.job_id,
        )
    console.print(table)
    console.print(f"\n{message} (${session.spent_usd:.4f} in all)")
    best = session.best
    if best is not None and best.summary is not None and best.summary.model_path:
        console.print(f"model: {best.summary.model_path}", soft_wrap=True)
