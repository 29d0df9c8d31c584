"""What the user sees while a job runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from textwrap import shorten
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from smlt.cli.wording import (
    clock_time,
    evaluated,
    position,
    print_plain,
    ranks,
    remaining_s,
    speed,
    spent,
    training,
)
from smlt.control.goals import size
from smlt.control.progress import Progress

PLAIN_INTERVAL_S = 5.0
REFRESHES_PER_S = 8
STALL_WIDTH = 200  # when many ranks wait, the first few tell enough


class View(Protocol):
    """Shows a job's progress; used as a context manager around the job."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    def update(self, progress: Progress) -> None:
        """Show the progress as it stands now."""
        ...

    def end(self, progress: Progress) -> None:
        """Show the progress for the last time: the step that it ends at is not left out."""
        ...

    def say(self, sentence: str) -> None:
        """Show a sentence at once, and leave it standing."""
        ...


def open_view(console: Console, *, quiet: bool, clock: Callable[[], float]) -> View:
    """Choose how to show progress on a console, which should be standard error."""
    if quiet:
        return QuietView(console)
    if console.is_terminal:
        return LiveView(console)
    return PlainView(console, clock)


class QuietView:
    """Shows only what is said to the user directly."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass

    def end(self, progress: Progress) -> None:
        self.update(progress)

    def say(self, sentence: str) -> None:
        print_plain(self._console, sentence)


class PlainView(QuietView):
    """One line every few seconds, and one at each epoch, evaluation, notice, plan and stall."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(console)
        self._clock = clock
        self._milestones = Milestones()
        self._stalled = False
        self._due_s = clock() + PLAIN_INTERVAL_S

    def update(self, progress: Progress) -> None:
        lines = self._milestones.since(progress)
        begins_to_stall = bool(progress.stalled) and not self._stalled
        self._stalled = bool(progress.stalled)
        has_news = self._stalled or progress.step > self._milestones.step
        is_due = has_news and not lines and self._clock() >= self._due_s
        if begins_to_stall or is_due:
            last = [f"stalled: {progress.stalled}"] if self._stalled else speed(progress)
            lines.append(self._milestones.at(progress, last))
        if lines:
            self._due_s = self._clock() + PLAIN_INTERVAL_S
        self._say(lines, progress)

    def end(self, progress: Progress) -> None:
        lines = self._milestones.since(progress)
        if progress.step > self._milestones.step:
            lines.append(self._milestones.at(progress))
        self._say(lines, progress)

    def _say(self, lines: Iterable[str], progress: Progress) -> None:
        for line in lines:
            self.say(f"[{clock_time(progress.elapsed_s)}] {line}")


class LiveView(QuietView):
    """A few lines that change in place, with what happened standing above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._milestones = Milestones()
        self._live = Live(
            console=console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        print_plain(self._console, sentence, wrap=True)

    def update(self, progress: Progress) -> None:
        for line in self._milestones.since(progress):
            self.say(line)
        self._live.update(render(progress))


class Milestones:
    """Finds what is new in a progress that changes in place, as lines worth keeping."""

    def __init__(self) -> None:
        self.step = 0
        """The last one that a line has named."""
        self._state = ""
        self._plan = ""
        self._notices = 0
        self._epoch = 0
        self._evaluation: dict[str, float] = {}

    def since(self, progress: Progress) -> list[str]:
        """Return the lines for what has happened since the last call."""
        lines = [*self._of_state(progress), *progress.notices[self._notices :]]
        self._notices = len(progress.notices)
        if progress.plan != self._plan:
            self._plan = progress.plan
            lines.append(f"plan: {progress.plan}")
        if progress.evaluation and progress.evaluation != self._evaluation:
            self._evaluation = dict(progress.evaluation)
            self._epoch = progress.epoch + 1
            lines.append(self.at(progress, ["test: " + ", ".join(evaluated(progress))]))
        elif progress.epoch > self._epoch:
            self._epoch = progress.epoch
            lines.append(self.at(progress))
        return lines

    def at(self, progress: Progress, more: Iterable[str] = ()) -> str:
        """Return a line that says how far the job is, and note that it did."""
        self.step = progress.step
        return " · ".join([*position(progress), *training(progress), *more])

    def _of_state(self, progress: Progress) -> list[str]:
        if progress.state == self._state:
            return []
        self._state = progress.state
        if progress.state == "starting" and progress.workers:
            return [f"starting {size(progress.size)}"]
        if progress.state == "running":
            return [f"job {progress.job_id} runs on {size(progress.size)}"]
        if progress.state == "waiting":
            return [self.at(progress, ["all is trained: waiting for more data, without workers"])]
        return []


def render(progress: Progress) -> RenderableType:
    """Draw a job's progress in a few lines, from 60 columns upwards."""
    rows = [
        ("train", " · ".join(training(progress)), ""),
        ("test", " · ".join(evaluated(progress)), ""),
        ("speed", " · ".join(speed(progress)), ""),
        ("cost", " · ".join(spent(progress)), ""),
        ("plan", progress.plan, ""),
        ("shards", progress.shards.partition(";")[0], ""),
        ("ranks", ranks(progress.ranks), ""),
        ("slow", shorten(progress.slow, STALL_WIDTH, placeholder=" …"), "yellow"),
        ("stalled", shorten(progress.stalled, STALL_WIDTH, placeholder=" …"), "yellow"),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text, style in rows:
        if text:
            grid.add_row(label, Text(text, style=style))
    return Group(_headline(progress), _bar(progress), grid)


def _headline(progress: Progress) -> RenderableType:
    state = Text.assemble((progress.state, "bold"), f"  {progress.job_id}")
    if progress.generation > 1:
        state.append(f" · generation {progress.generation}")
    time = clock_time(progress.elapsed_s)
    if (left_s := remaining_s(progress)) is not None:
        time += f", about {clock_time(left_s)} left"
    return _two_sides(state, Text(time))


def _bar(progress: Progress) -> RenderableType:
    is_open = progress.total_steps is None and progress.step > 0
    total = None if is_open else progress.total_steps or 1
    bar = ProgressBar(total=total, completed=progress.step, pulse=is_open)
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(bar, Text(" · ".join(position(progress))))
    return grid


def _two_sides(left: Text, right: Text) -> Table:
    grid = Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid
