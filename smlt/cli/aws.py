"""``smlt package``, ``deploy``, ``destroy`` and ``doctor``: into an AWS account, and out again."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict, replace
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from smlt.cli.summary import to_json
from smlt.cli.wording import print_plain
from smlt.config import TrainConfig, find_objects, find_parameters
from smlt.config.aws import AwsConfig
from smlt.errors import ConfigError

if TYPE_CHECKING:
    from smlt.aws.deployment import Change
    from smlt.aws.shipment import Sending, Shipment

Given = str | None
Target = Annotated[
    Given, typer.Argument(metavar="TARGET", help="The task: file.py:Class or module:Class.")
]
Name = Annotated[Given, typer.Option(metavar="NAME", help="Of the deployment [from --objects].")]
Region = Annotated[Given, typer.Option(metavar="REGION", help="AWS's region [AWS_REGION].")]
Python = Annotated[Given, typer.Option(metavar="3.12|3.13|3.11", help="Of the functions.")]
Architecture = Annotated[Given, typer.Option(metavar="x86_64|arm64", help="Of the functions.")]
Requirements = Annotated[
    Given, typer.Option(metavar="FILE", help="Packages [requirements.txt beside the task].")
]
Image = Annotated[
    bool | None,
    typer.Option("--image/--no-image", help="As a container image, which Docker builds [zips]."),
]
Objects = Annotated[
    Given, typer.Option(metavar="URL", help="The object store, s3://bucket/prefix.")
]
Parameters = Annotated[
    Given, typer.Option(metavar="URL", help="The parameter store, rediss://… or s3://….")
]
MemoryMb = Annotated[Given, typer.Option(metavar="MB", help="Memory of the functions [1769].")]
Sizes = Annotated[
    Given, typer.Option(metavar="MB,MB", help="More sizes of memory to make functions for.")
]
RunDir = Annotated[Given, typer.Option(metavar="DIR", help="Where jobs are kept [.smlt].")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_ANY_STORES = {"objects": "s3://bucket/prefix", "parameters": "s3://bucket/prefix"}
"""Where the stores are does not change what is in a package."""


def package(
    context: typer.Context,
    target: Target = None,
    data: Annotated[Given, typer.Option(metavar="DIR", help="The data, which is left out.")] = None,
    python: Python = None,
    architecture: Architecture = None,
    requirements: Requirements = None,
    image: Image = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> int:
    """Show what would be deployed: each part, how large it is, and why it is there."""
    _, _, shipment = _packed(context.params | _ANY_STORES)
    if as_json:
        print(to_json(_plain(shipment)))
    else:
        _print_package(shipment)
    return 0


def _plain(shipment: Shipment) -> dict[str, Any]:
    built, release = shipment.package, shipment.release
    return {
        "machine": str(built.machine),
        "code": release.code,
        "layer": release.layer,
        "code_bytes": len(built.code_zip),
        "ephemeral_mb": release.ephemeral_mb,
        "compiled": built.bytecode is not None,
        "image": release.image,
        "parts": [asdict(part) for part in built.parts()],
    }


def _print_package(shipment: Shipment) -> None:
    built, release = shipment.package, shipment.release
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("part", "in", "packed", "unpacked", "why"):
        table.add_column(heading, justify="right" if heading.endswith("packed") else "left")
    parts = built.parts()
    for part in parts:
        packed = "" if part.packed is None else _megabytes(part.packed)
        table.add_row(part.name, part.place, packed, _megabytes(part.unpacked), part.why)
    Console(soft_wrap=True).print(table)
    unpacked = sum(part.unpacked for part in parts if part.place != "bundle")
    if built.is_image:
        print(f"for {built.machine}: {_megabytes(unpacked)}, above this\n")
        print(import_module("smlt.aws.image").dockerfile(built))
    else:
        print(f"for {built.machine}: {_megabytes(unpacked)} unpacked of Lambda's 250 MB")
    print(
        f"code {release.code[:16]}, packages {release.layer[:16]}, "
        f"/tmp of {release.ephemeral_mb:,} MB"
    )
    if built.bytecode is None:
        print(
            f"not compiled, for there is no python{built.machine.python} on this machine: with one "
            "on PATH every cold start would be about half a second shorter"
        )


def deploy(
    context: typer.Context,
    target: Target = None,
    data: Annotated[Given, typer.Option(metavar="DIR", help="The data, which is left out.")] = None,
    objects: Objects = None,
    parameters: Parameters = None,
    memory_mb: MemoryMb = None,
    sizes: Sizes = None,
    name: Name = None,
    region: Region = None,
    python: Python = None,
    architecture: Architecture = None,
    requirements: Requirements = None,
    image: Image = None,
    run_dir: RunDir = None,
    dry_run: DryRun = False,
) -> int:
    """Create or update the role, the packages, the log groups and the functions in AWS.

    What is as it should be is left alone. `smlt train --platform aws` does the same by itself.
    """
    config, aws, shipment = _packed(context.params)
    wanted = sorted({config.memory_mb, *map(int, aws.sizes)})
    changes: list[Change] = []

    def told(change: Change) -> None:
        changes.append(change)
        if change.what:
            print_plain(Console(), f"{change.title}: {change.what}")

    account = import_module("smlt.account")
    with _UploadView() as view:
        deploying = account.deploy(
            shipment, wanted, dry_run=dry_run, told=told, said=_say, sending=view.show
        )
        asyncio.run(deploying)
    done = sum(bool(change.what) for change in changes)
    verb = "would change" if dry_run else "changed"
    print(f"{shipment.release.name}: {verb} {done} of {len(changes)} things")
    return 0


def destroy(
    context: typer.Context,
    objects: Objects = None,
    name: Name = None,
    region: Region = None,
    dry_run: DryRun = False,
) -> int:
    """Remove what `smlt deploy` has made, and prove that nothing is left.

    Jobs, models and data in the bucket stay.
    """
    aws = AwsConfig.load(_chosen(context.params, "name", "region"))
    where = _store(find_objects(objects))
    removed: list[str] = []

    def told(title: str) -> None:
        removed.append(title)
        print(f"{'would remove' if dry_run else 'removed'} {title}")

    account = import_module("smlt.account")
    named = asyncio.run(account.destroy(where, aws, dry_run=dry_run, told=told))
    if not dry_run:
        print(
            f"{named}: removed {len(removed)} things; nothing with its tag is left. "
            f"What jobs have stored stays in {where.partition('?')[0]}."
        )
    return 0


def doctor(
    context: typer.Context,
    objects: Objects = None,
    parameters: Parameters = None,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Functions that a job would run at a time.")
    ] = 4,
    name: Name = None,
    region: Region = None,
    as_json: Json = False,
) -> int:
    """Check credentials, clock, quota and stores, from here and from a deployed function."""
    aws = AwsConfig.load(_chosen(context.params, "name", "region"))
    where = _store(find_objects(objects))
    servers = find_parameters(parameters)
    account = import_module("smlt.account")
    findings = asyncio.run(account.diagnose(where, servers, aws, workers))
    if as_json:
        print(to_json([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            mark = "ok   " if finding.ok else "FAULT"
            print(f"{mark} {finding.what}: {finding.detail}")
    return 0 if all(finding.ok for finding in findings) else 1


COMMANDS = (package, deploy, destroy, doctor)


def confirmed(config: TrainConfig) -> TrainConfig:
    """Ask before a job without a budget starts on AWS.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if config.yes or config.budget is not None:
        return config
    if not sys.stdin.isatty():
        raise ConfigError(
            "a job on AWS costs money: limit it with --budget USD, or confirm with --yes"
        )
    typer.confirm(
        f"This starts {config.workers} functions of {config.memory_mb:,} MB in your AWS account, "
        "without a budget. Go on?",
        abort=True,
        err=True,
    )
    return replace(config, yes=True)


class _UploadView:
    """Says what is uploaded; in a terminal also how much of it is there."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._is_live = self._bar.console.is_terminal
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def show(self, sending: Sending) -> None:
        """Show what has come so far."""
        if not sending.done:
            _say(str(sending))
        if not self._is_live:
            return
        if self._task is None:
            self._task = self._bar.add_task("")
            self._bar.start()
        done, total = sending.done, sending.size
        self._bar.update(self._task, description=sending.what, completed=done, total=total)


def _packed(params: dict[str, Any]) -> tuple[TrainConfig, AwsConfig, Shipment]:
    names = ("target", "data", "objects", "parameters", "memory_mb", "run_dir")
    config = TrainConfig.load({**_chosen(params, *names), "platform": "aws"})
    aws = AwsConfig.load(params)
    shipment: Shipment = import_module("smlt.account").pack(config, aws)
    return config, aws, shipment


def _store(objects: str | None) -> str:
    if objects is None:
        raise ConfigError("name the deployment's object store with --objects s3://bucket/prefix")
    return objects


def _chosen(params: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: params[name] for name in names if name in params}


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
