"""How a job ended, in words for a reader and in JSON for a program."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smlt.cli.wording import clock_time, dollars
from smlt.control.goals import size
from smlt.control.progress import Summary
from smlt.messages.job import ResourcePlan


def to_json(value: Any) -> str:
    """Write one line of strict JSON; numbers that are not finite become null."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def success_text(summary: Summary, *, here: Path, torch: bool) -> str:
    """Describe a job that was completed or stopped.

    Args:
        summary: how it ended.
        here: the folder from which paths are given, where they lie below it.
        torch: whether the line that loads the model should be torch's.
    """
    model, best = _path(summary.model_path, here), _path(summary.best_model_path, here)
    rows = [(name, f"{value:.6g}") for name, value in summary.metrics.items()] + [
        ("time", f"{clock_time(summary.seconds)} on {_size(summary)}"),
        ("phases", _phases(summary)),
        ("shards", summary.shards),
        ("cost", _cost(summary)),
        ("model", model),
        ("best model", best),
        ("checkpoint", None if model else _path(summary.checkpoint, here)),
        ("load it", _loading(best or model, torch=torch)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows if text]
    if summary.weights_digest:
        lines.append(f"  weights {summary.weights_digest}")
    return "\n".join([_headline(summary), *lines])


def failure_text(summary: Summary, logs: Path | None) -> str:
    """Describe a job that failed: why, the worker's traceback, and what is left.

    Args:
        summary: how it ended.
        logs: folder of the workers' prints, if there is one.
    """
    parts = [f"smlt: {summary.message}"]
    if summary.traceback:
        rank = re.search(r"\brank \d+", summary.message)
        source = rank[0] if rank else "the worker"
        parts += [f"\n  from {source}'s log:", textwrap.indent(summary.traceback.rstrip(), "    ")]
    rows = [
        ("ran", f"{_count(summary.steps, 'step')} in {clock_time(summary.seconds)}"),
        ("cost", _cost(summary)),
        ("logs", f"{logs} (or: smlt logs {summary.job_id})" if logs else None),
        ("checkpoint", summary.checkpoint),
    ]
    return "\n".join([*parts, "", *(f"  {name:<10}  {text}" for name, text in rows if text)])


def _headline(summary: Summary) -> str:
    done = f"{_count(summary.steps, 'step')}, {_count(summary.epochs, 'epoch')}"
    return f"{summary.state} job {summary.job_id}: {summary.message.rstrip('.')} ({done})"


def _size(summary: Summary) -> str:
    plan = ResourcePlan(
        workers=summary.workers,
        memory_mb=summary.memory_mb,
        aggregators=summary.aggregators,
        wire_dtype=summary.wire_dtype,
    )
    text = size(plan)
    if summary.generations > 1:
        text += f", in {summary.generations} generations"
    return text


def _cost(summary: Summary) -> str:
    amount = dollars(summary.cost_usd, is_estimate=summary.cost_is_estimate)
    return f"{amount} for {summary.billed_gb_s:,.1f} GB-s billed"


def _phases(summary: Summary) -> str | None:
    """Say where a worker's time went; phases overlap, and those that took none are left out."""
    told = [f"{name} {seconds:.1f} s" for name, seconds in summary.phases.items() if seconds > 0.05]
    return ", ".join(told) or None


def _path(path: str | None, here: Path) -> str | None:
    """Shorten a path that lies below the current folder."""
    if path is None or not Path(path).is_relative_to(here):
        return path
    return str(Path(path).relative_to(here))


def _loading(path: str | None, *, torch: bool) -> str | None:
    if path is None:
        return None
    if torch:
        return f'model.load_state_dict(safetensors.torch.load_file("{path}"))'
    return f'weights = safetensors.numpy.load_file("{path}")'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
