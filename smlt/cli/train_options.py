"""The options of ``smlt train``, a line each; ``smlt plan`` and ``smlt tune`` take some of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from smlt.config.sources import flag

# Every option is text here: TrainConfig reads all sources alike, so that a bad value is refused
# in the same words wherever it stands.
Given = str | None
Switch = bool | None

_OPTIONS: dict[str, str | tuple[str, str]] = {
    "data": ("DIR", "The data, or s3://bucket/prefix; by default data/ beside the task's file."),
    "params": ("NAME=VALUE", "For the task's constructor; repeat."),
    "workers": ("N", "Functions at a time [4]."),
    "memory_mb": ("MB", "Memory of each; 1769 buy one vCPU [1769]."),
    "deadline": ("TIME", "Be done within it, as in 30m; at least cost."),
    "budget": ("USD", "Cost no more, as in 2.50; be done soonest."),
    "adapt": "Change workers and memory as is best [with --deadline or --budget].",
    "max_workers": ("N", "The most when adapting [--virtual-workers]."),
    "prices": ("FILE", "Your own rates, as in smlt/control/prices.toml."),
    "cache_node": ("TYPE", "ElastiCache node of --parameters: count its hours as well."),
    "epochs": ("N", "[1, unless --steps or --until is given]"),
    "steps": ("N", "End after this many."),
    "until": ("BOUND", "End when met, as in 'accuracy>=0.95'."),
    "patience": ("N", "End after N evaluations without a better metric."),
    "keep_best": ("METRIC[:min]", "Keep the weights best by it, too."),
    "init_from": ("FILE", "Weights to begin from, .safetensors."),
    "batch_size": ("N", "Samples a step, over all workers [64]."),
    "seed": ("N", "Decides all randomness [0]."),
    "aggregators": ("N", "Workers that average shards [found by first steps]."),
    "shard_mb": ("MB", "Largest shard of a gradient [found by first steps]."),
    "wire_dtype": ("TYPE", "Send gradients as bf16 or fp16; auto tries bf16 [fp32]."),
    "tune": ("LIST", "Adapt aggregators, wire-dtype or both, too."),
    "virtual_workers": ("N", "Parts of the data, a power of two [16 or more]."),
    "objects": ("URL", "s3://bucket/prefix; by default the run directory."),
    "s3_endpoint": ("URL", "An S3-compatible service [AWS]."),
    "determinism": ("exact|fast", "Same bits for any number of workers, or a fixed one [fast]."),
    "checkpoint_every": ("TIME", "How often the state is saved in the background [1m]."),
    "keep_checkpoints": ("N", "How many of the newest stay [3]."),
    "parameters": ("URL", "A running Valkey; by default one is started."),
    "link_mbps": ("MB", "Pace a worker's link to it; Lambda's has about 70 MB/s."),
    "run_dir": ("DIR", "Where jobs are kept [.smlt]."),
    "platform": ("local|aws", "Where functions run [local]."),
    "yes": "Start on AWS without --budget, unasked.",
    "chaos": ("SEED", "Have the embedded Lambda misbehave, to try the job."),
    "orphan_timeout": ("TIME", "Workers go on so long without a client [5s]."),
    "function_timeout": ("TIME", "Limit of one function; the job is longer [15m]."),
    "watch": "When all is trained, wait for more data and train on that, until Ctrl-C.",
    "inline": "One rank in this process, for a debugger.",
    "trace": "Log when each shard went and came.",
    "json": "Print the summary as one JSON object.",
    "quiet": "Show no progress.",
}
"""What to give and what it means, by the field of TrainConfig; a switch has no more than that."""

TARGET = inspect.Parameter(
    "target",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=Annotated[
        Given, typer.Argument(metavar="TARGET", help="The task: file.py:Class or module:Class.")
    ],
)
NAMES = ("target", *_OPTIONS)


def with_options(names: Collection[str], command: Callable[..., int]) -> Callable[..., int]:
    """Return a command that also takes these options; it finds their values in its context.

    Args:
        names: of NAMES.
        command: takes ``context`` and options of its own.
    """
    own = inspect.signature(command, eval_str=True).parameters
    shared = [TARGET, *map(_parameter, _OPTIONS)]
    parameters = [
        own["context"],
        *(one for one in shared if one.name in names and one.name not in own),
        *(one for name, one in own.items() if name != "context"),
    ]

    def run(context: typer.Context, **given: Any) -> int:
        return command(context, **{name: given[name] for name in own if name != "context"})

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameter(name: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=_annotation(name, _OPTIONS[name]),
    )


def _annotation(name: str, option: str | tuple[str, str]) -> Any:
    if isinstance(option, str):
        both = f"{flag(name)}/--no-{flag(name)[2:]}"
        return Annotated[Switch, typer.Option(both, help=option)]
    metavar, text = option
    described = typer.Option(flag(name), metavar=metavar, help=text)
    if name == "params":
        return Annotated[list[str] | None, described]
    return Annotated[Given, described]
