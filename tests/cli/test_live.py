"""What is drawn for a progress, and which lines are left standing."""

import io

import pytest
from rich.console import Console

from smlt.cli.live import (
    LiveView,
    Milestones,
    PlainView,
    QuietView,
    open_view,
    render,
)
from smlt.cli.wording import clock_time, dollars, ranks, remaining_s
from smlt.control.progress import Progress
from smlt.messages.worker import RankState


def progress(**changes):
    fields = {
        "job_id": "20261122-101500-mnist",
        "state": "running",
        "generation": 1,
        "workers": 4,
        "memory_mb": 1769,
        "step": 142,
        "total_steps": 378,
        "epoch": 2,
        "epochs": 6,
        "loss": 0.21342,
        "metrics": {"accuracy": 0.9531},
        "evaluation": {"accuracy": 0.9612},
        "steps_per_s": 12.34,
        "samples_per_s": 789.6,
        "ranks": [RankState(rank=r, state="training", step=142) for r in range(4)],
        "elapsed_s": 42.9,
        "billed_gb_s": 72.4,
        "cost_usd": 0.001207,
        "shards": "2 shards of 0.5 MB in fp32, 2 owners, 4 at a time; a step in 1 s, as usual 2 s",
    }
    return Progress(**fields | changes)


def drawn(given, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(render(given))
    return console.file.getvalue()


def test_everything_that_was_promised_is_shown():
    text = drawn(progress())
    for part in (
        "step 142/378",
        "epoch 3/6",
        "loss 0.2134",
        "accuracy 0.9531",
        "accuracy 0.9612",
        "12.3 steps/s",
        "790 samples/s",
        "0–3 training",
        "0:42",
        "about 0:19 left",
        "≈ $0.0012 (estimated)",
        "72.4 GB-s",
        "4 workers of 1,769 MB",
        "2 shards of 0.5 MB in fp32",
    ):
        assert part in text, part


def test_what_is_waited_for_is_shown_only_when_something_stalls():
    assert "stalled" not in drawn(progress())
    text = drawn(progress(stalled="rank 0 waits for shard 3 of rank 1"))
    assert "stalled  rank 0 waits for shard 3 of rank 1" in text


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("workers", [1, 4, 1000])
def test_no_line_is_wider_than_the_terminal_and_the_height_is_bounded(width, workers):
    states = ["training", "loading", "evaluating"]
    many = progress(
        workers=workers,
        ranks=[RankState(rank=r, state=states[r % 3]) for r in range(workers)],
        metrics={f"metric_{i}": i / 7 for i in range(8)},
        stalled="; ".join(f"rank {r} waits for shard 12 of rank 731" for r in range(workers)),
        generation=12,
    )
    lines = drawn(many, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 16


def test_a_job_that_has_only_begun_can_be_drawn():
    text = drawn(Progress())
    assert "starting" in text
    assert "loss" not in text


def test_an_open_end_shows_no_total_and_no_time_left():
    text = drawn(progress(total_steps=None, epochs=None))
    assert "step 142 " in text
    assert "left" not in text


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("tttt", "0–3 training"),
        ("tltt", "0, 2–3 training · 1 loading"),
        ("t", "0 training"),
        ("tltltltltl", "5 of them training · 5 of them loading"),
        ("", ""),
    ],
)
def test_ranks_are_listed_by_state_as_ranges(states, expected):
    names = {"t": "training", "l": "loading"}
    listed = [RankState(rank=rank, state=names[letter]) for rank, letter in enumerate(states)]
    assert ranks(reversed(listed)) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (754, "12:34"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.0000653, "$0.000065"), (0.00121, "$0.0012"), (1.5, "$1.5000"), (1234.567, "$1,234.57")],
)
def test_dollars_are_marked_when_estimated(amount, text):
    assert dollars(amount, is_estimate=False) == text
    assert dollars(amount, is_estimate=True) == f"≈ {text} (estimated)"


def test_time_left_is_steps_over_speed():
    assert remaining_s(progress(step=100, total_steps=200, steps_per_s=10)) == 10
    assert remaining_s(progress(steps_per_s=0)) is None
    assert remaining_s(progress(state="stopping")) is None


def test_milestones_tell_each_thing_once():
    seen = Milestones()
    job = Progress(workers=4, memory_mb=1769)
    assert seen.since(job) == ["starting 4 workers of 1,769 MB"]
    assert seen.since(job) == []
    job.notices.append("No cgroups here.")
    assert seen.since(job) == ["No cgroups here."]
    job.state, job.job_id = "running", "j1"
    assert seen.since(job) == ["job j1 runs on 4 workers of 1,769 MB"]
    job.step, job.total_steps, job.loss = 10, 20, 0.5
    assert seen.since(job) == []
    job.evaluation = {"accuracy": 0.9}
    assert seen.since(job) == ["step 10/20 · epoch 1 · loss 0.5 · test: accuracy 0.9"]
    job.evaluation["accuracy"] = 0.95
    assert len(seen.since(job)) == 1
    assert seen.since(job) == []


def test_an_epoch_without_evaluation_gets_its_line_and_one_with_it_gets_no_second():
    seen = Milestones()
    job = progress(evaluation={}, epoch=0)
    seen.since(job)
    job.epoch = 1
    assert len(seen.since(job)) == 1
    job.evaluation = {"accuracy": 0.9}
    assert len(seen.since(job)) == 1
    job.epoch = 2
    assert seen.since(job) == []


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)


def test_plain_lines_come_every_few_seconds_and_not_every_step(clock, console):
    view = PlainView(console, clock)
    job = progress(step=0, evaluation={}, epoch=0)
    with view:
        for step in range(200):
            clock.now, job.step = step / 10, step
            view.update(job)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1 + 3  # "runs on", then one each 5 s of 20 s
    assert "12.3 steps/s" in lines[-1]


def test_plain_lines_stop_where_nothing_moves(clock, console):
    view = PlainView(console, clock)
    job = progress()
    for second in range(100):
        clock.now = second
        view.update(job)
    assert console.file.getvalue().count("step 142") == 1


def test_the_step_that_a_job_ends_at_is_always_told(clock, console):
    view = PlainView(console, clock)
    job = progress(step=7, total_steps=8, notices=[])
    view.update(job)
    # The last step arrives together with a notice, which has a line of its own.
    job.step = 8
    job.notices.append("The disk is nearly full.")
    view.end(job)
    assert "step 8/8" in console.file.getvalue().splitlines()[-1]
    view.end(job)
    assert console.file.getvalue().count("step 8/8") == 1


def test_each_change_of_the_plan_is_told_with_its_reason(clock, console):
    view = PlainView(console, clock)
    job = progress()
    reasons = [
        "trying 8 workers of 1,769 MB: expected to save 9%",
        "staying with 8 workers of 1,769 MB: best of the 2 plans tried",
    ]
    for job.plan in reasons:
        view.update(job)
        view.update(job)
    told = [line for line in console.file.getvalue().splitlines() if "plan: " in line]
    assert [line.partition("plan: ")[2] for line in told] == reasons


def test_a_stall_is_told_at_once_and_then_now_and_again(clock, console):
    view = PlainView(console, clock)
    job = progress(evaluation={}, epoch=0)
    view.update(job)
    for second in range(12):
        clock.now, job.stalled = second, f"rank 0 waits for shard {second}"
        view.update(job)
    told = [
        line for line in console.file.getvalue().splitlines() if "stalled: rank 0 waits" in line
    ]
    assert len(told) == 3


def test_long_lines_are_not_broken_in_a_log(clock, console):
    PlainView(console, clock).say("word " * 100)
    assert len(console.file.getvalue().splitlines()) == 1


def test_text_from_elsewhere_is_not_read_as_markup(clock, console):
    PlainView(console, clock).say("[bold]a[/bold] :smile: [/]")
    assert console.file.getvalue() == "[bold]a[/bold] :smile: [/]\n"


def test_quiet_shows_only_what_is_said(console):
    view = QuietView(console)
    view.update(progress())
    view.say("Stopping.")
    assert console.file.getvalue() == "Stopping.\n"


def test_the_live_view_leaves_the_milestones_standing():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with LiveView(console) as view:
        view.update(progress(notices=["No cgroups here."]))
        view.say("Stopping.")
    text = console.file.getvalue()
    assert "No cgroups here." in text
    assert "Stopping." in text


def test_the_view_follows_the_console(clock, console):
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(open_view(terminal, quiet=False, clock=clock), LiveView)
    assert isinstance(open_view(console, quiet=False, clock=clock), PlainView)
    assert type(open_view(terminal, quiet=True, clock=clock)) is QuietView
