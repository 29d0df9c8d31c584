"""Log lines to prints by rank, endings, and a bill that was worked out by hand."""

import pytest

from smlt.control.invocations import Invocations
from smlt.control.lambda_client import LogEvent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def invocations(tmp_path, clock):
    return Invocations(tmp_path, clock)


def lines(stream, *messages, at=1000):
    return [LogEvent(stream, at + i, message) for i, message in enumerate(messages)]


def report(request_id, billed=2000, used=40, extra=""):
    return (
        f"REPORT RequestId: {request_id}\tDuration: 1999.10 ms\tBilled Duration: {billed} ms\t"
        f"Memory Size: 128 MB\tMax Memory Used: {used} MB\t{extra}"
    )


def test_prints_go_to_the_rank_that_the_request_id_names(invocations, tmp_path):
    invocations.sent("a", 1, 0, 128)
    invocations.sent("b", 1, 1, 128)
    invocations.take(
        lines("s1", "START RequestId: a Version: 1", "from rank 0", "END RequestId: a")
        + lines("s2", "START RequestId: b Version: 1", "from rank 1")
        + lines("s1", "START RequestId: b Version: 1", "rank 1 again", at=2000)
    )
    assert "from rank 0\n" in (tmp_path / "rank-0.log").read_text()
    prints = (tmp_path / "rank-1.log").read_text()
    assert "from rank 1\n" in prints
    assert "rank 1 again\n" in prints
    assert "from rank 0" not in prints


def test_lines_read_twice_are_written_once_and_equal_lines_as_often_as_printed(
    invocations, tmp_path
):
    invocations.sent("a", 1, 0, 128)
    same = [LogEvent("s", 1001, "tick"), LogEvent("s", 1001, "tick")]
    events = [LogEvent("s", 1000, "START RequestId: a Version: 1"), *same]
    invocations.take(events)
    invocations.take([event for event in events if event.timestamp_ms >= invocations.since_ms()])
    assert (tmp_path / "rank-0.log").read_text().count("tick") == 2


def test_event_delivered_twice_is_two_invocations_of_which_either_may_die(invocations, clock):
    invocations.sent("a", 1, 0, 128)
    start, died = "START RequestId: a Version: 1", "Status: error\tError Type: Runtime.ExitError"
    invocations.take(lines("s1", start) + lines("s2", start, report("a", billed=1000, extra=died)))
    first, second = invocations.of(1)
    assert (first.stream, first.ended, first.error_type) == ("s1", False, "")
    assert (second.stream, second.ended) == ("s2", True)
    assert second.error_type == "Runtime.ExitError"
    # One second of what died, and three so far of what runs: of an eighth of a GB.
    clock.now += 3.0
    assert invocations.bill()[0] == pytest.approx(0.5)
    # Once more in the environment where the first has ended.
    invocations.take(lines("s1", report("a"), start, report("a", billed=500), at=3000))
    assert [i.billed_ms for i in invocations.of(1)] == [2000, 1000, 500]
    assert invocations.bill()[0] == pytest.approx(3.5 / 8)


def test_event_that_was_lost_has_not_started(invocations):
    invocations.sent("a", 1, 0, 128)
    invocations.sent("b", 1, 1, 128)
    invocations.take(lines("s", "START RequestId: b Version: 1"))
    assert [i.started for i in invocations.of(1)] == [False, True]


def test_bill_adds_what_ended_to_what_still_runs(invocations, clock):
    invocations.sent("a", 1, 0, 128)
    invocations.sent("b", 1, 1, 128)
    invocations.take(lines("s", "START RequestId: a Version: 1", report("a", billed=2000)))
    clock.now += 4.0
    gb_s, dollars = invocations.bill()
    # 2 s and 4 s of an eighth of a GB, two requests.
    assert gb_s == pytest.approx(0.75)
    assert dollars == pytest.approx(0.75 * 0.0000166667 + 2 * 0.0000002)


@pytest.mark.parametrize(
    ("used", "extra", "out_of_memory"),
    [
        (128, "Status: error\tError Type: Runtime.OutOfMemory", True),
        (128, "Status: error\tError Type: Runtime.ExitError", True),
        (90, "Status: error\tError Type: Runtime.ExitError", False),
        (128, "", False),
        (90, "Status: timeout", False),
    ],
)
def test_death_by_memory_is_told_from_others(invocations, used, extra, out_of_memory):
    invocations.sent("a", 1, 0, 128)
    invocations.take(lines("s", report("a", used=used, extra=extra)))
    (invocation,) = invocations.of(1)
    assert invocation.ended
    assert invocation.out_of_memory is out_of_memory


def test_what_lambda_says_of_an_end_is_kept_apart_from_the_workers_last_line(invocations):
    invocations.sent("a", 1, 0, 128)
    invocations.take(
        lines(
            "s",
            "START RequestId: a Version: 1",
            "about to fail",
            "RequestId: a Error: Runtime exited with error: signal: killed",
            report("a", extra="Status: error\tError Type: Runtime.ExitError"),
        )
    )
    (invocation,) = invocations.of(1)
    assert invocation.last_line == "about to fail"
    assert invocation.reason == "Runtime exited with error: signal: killed"
