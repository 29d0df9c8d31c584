"""Reading event logs, whole ones and those of writers that were killed."""

import json
import logging

import pytest

from smlt.report.events import Event, read_events


def lines(*events):
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


START = {"t": 1.5, "event": "start", "workers": 4}
STEP = {"t": 2, "event": "step", "step": 7, "note": "déjà"}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "events.jsonl"


def test_events_come_in_order_with_their_fields(log):
    log.write_bytes(lines(START, STEP))
    assert list(read_events(log)) == [
        Event(1.5, "start", {"workers": 4}),
        Event(2.0, "step", {"step": 7, "note": "déjà"}),
    ]


@pytest.mark.parametrize("kept", range(1, len(lines(STEP)) - 1))
def test_a_last_line_torn_anywhere_is_left_out_silently(log, caplog, kept):
    log.write_bytes(lines(START) + lines(STEP)[:kept])
    with caplog.at_level(logging.WARNING):
        assert [event.name for event in read_events(log)] == ["start"]
    assert not caplog.records


def test_a_torn_line_that_was_appended_to_is_left_out_with_a_warning(log, caplog):
    log.write_bytes(lines(START) + lines(STEP)[:9] + lines(STEP) + lines(STEP))
    assert [event.name for event in read_events(log)] == ["start", "step"]
    assert "line 2" in caplog.text


@pytest.mark.parametrize("line", [b"3", b"[]", b"{}", b'{"t": "x", "event": "a"}', b"\xff"])
def test_a_line_that_is_no_event_is_left_out(log, line):
    log.write_bytes(line + b"\n" + lines(START))
    assert [event.name for event in read_events(log)] == ["start"]


def test_an_empty_log_has_no_events(log):
    log.write_bytes(b"")
    assert list(read_events(log)) == []


def test_a_missing_log_is_missing(log):
    with pytest.raises(FileNotFoundError):
        list(read_events(log))
