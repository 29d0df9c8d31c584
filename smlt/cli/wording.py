"""A job's progress in words, as all commands say it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from smlt.control.goals import size
from smlt.control.progress import Progress
from smlt.messages.worker import RankState

MOST_RANGES = 4  # beyond that, a state's ranks are counted and not listed


def position(progress: Progress) -> list[str]:
    """Say how far the job is: steps done, and the epoch of the latest one, counted from one."""
    total = f"/{progress.total_steps:,}" if progress.total_steps is not None else ""
    epochs = f"/{progress.epochs}" if progress.epochs is not None else ""
    return [f"step {progress.step:,}{total}", f"epoch {progress.epoch + 1}{epochs}"]


def training(progress: Progress) -> list[str]:
    """Name the loss and the user's own metrics of the latest step."""
    loss = {} if progress.loss is None else {"loss": progress.loss}
    return _named(loss | progress.metrics)


def evaluated(progress: Progress) -> list[str]:
    """Name the metrics of the last evaluation."""
    return _named(progress.evaluation)


def speed(progress: Progress) -> list[str]:
    if not progress.steps_per_s:
        return []
    return [f"{progress.steps_per_s:.3g} steps/s", f"{progress.samples_per_s:,.0f} samples/s"]


def cost(progress: Progress) -> str:
    return dollars(progress.cost_usd, is_estimate=progress.cost_is_estimate)


def dollars(amount: float, *, is_estimate: bool) -> str:
    """Show an amount in US dollars, marked where it is what Lambda would have cost."""
    digits = 2 if amount >= 10 else 4 if amount >= 0.001 else 6
    return f"≈ ${amount:,.{digits}f} (estimated)" if is_estimate else f"${amount:,.{digits}f}"


def spent(progress: Progress) -> list[str]:
    """Say what it has cost so far, and the plan that it runs on."""
    return [cost(progress), f"{progress.billed_gb_s:,.1f} GB-s", size(progress.size)]


def ranks(states: Iterable[RankState]) -> str:
    """List the ranks by their state, as ranges: ``0–2, 5 training · 3–4 loading``."""
    by_state: dict[str, list[int]] = {}
    for rank in sorted(states, key=lambda state: state.rank):
        by_state.setdefault(rank.state, []).append(rank.rank)
    return " · ".join(f"{_ranges(found)} {state}" for state, found in by_state.items())


def _ranges(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    if len(ranges) > MOST_RANGES:
        return f"{len(numbers)} of them"
    return ", ".join("–".join(map(str, ends)) for ends in ranges)


def remaining_s(progress: Progress) -> float | None:
    """Estimate the seconds left at the present speed, where a number of steps is set."""
    if progress.total_steps is None or not progress.steps_per_s or progress.state != "running":
        return None
    return max(0, progress.total_steps - progress.step) / progress.steps_per_s


def clock_time(seconds: float) -> str:
    """Write a duration as ``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def print_plain(console: Console, text: str, *, wrap: bool = False) -> None:
    """Print text as it is: no markup, no colouring of numbers, lines broken only on request."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=not wrap)


def _named(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]
