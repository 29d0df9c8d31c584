"""RESP as bytes: any reply, however it is split, and hostile ones within bounds."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smlt._core import reply_reader
from smlt._core._reference import reply_reader as reference
from smlt._core.replies import (
    MAX_DEPTH,
    SCRATCH_BYTES,
    SMALL_BYTES,
    ErrorReply,
    OversizeError,
    RespError,
)
from smlt.io import resp
from smlt.io.parameter_store import MAX_FRAME_BYTES

READERS = (reply_reader.ReplyReader, reference.ReplyReader)

TEXTS = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=9)
BULKS = st.one_of(
    st.binary(max_size=50),
    st.builds(lambda b, n: (b * n)[:n], st.binary(min_size=1, max_size=40), st.integers(0, 70_000)),
)
LEAVES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    BULKS,
    TEXTS.map(lambda text: ("simple", text.encode())),
    TEXTS.map(lambda text: ("error", text)),
)
REPLIES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5), max_leaves=12)


def wire(value) -> bytes:
    """The reply as a server writes it, straight from the specification."""
    match value:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case ("simple", text):
            return b"+" + text + b"\r\n"
        case ("error", text):
            return b"-" + text.encode() + b"\r\n"
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(wire, value))
    raise AssertionError(value)


def plain(value):
    """What the reply means, in a form that compares."""
    match value:
        case ("simple", text):
            return text
        case ErrorReply():
            return ("error", str(value))
        case memoryview():
            return bytes(value)
        case list():
            return [plain(item) for item in value]
    return value


def feed(reader, data: bytes, steps=None) -> None:
    """Let the reader receive the data in steps of the given sizes, then whole."""
    rest = memoryview(data)
    steps = iter(steps or ())
    while rest:
        buffer = reader.get_buffer()
        assert buffer.nbytes > 0
        count = min(next(steps, len(rest)), buffer.nbytes, len(rest))
        buffer[:count] = rest[:count]
        rest = rest[count:]
        reader.buffer_updated(count)


def new(reader=reply_reader.ReplyReader, *, count=10_000, max_bytes=MAX_FRAME_BYTES, into=None):
    made = reader()
    made.expect(count, max_bytes=max_bytes, into=into)
    return made


def outcome(reader, data: bytes, steps):
    try:
        feed(reader, data, steps)
    except RespError as error:
        return type(error), str(error), list(map(plain, reader.replies))
    return list(map(plain, reader.replies)), reader.missing, reader.fills_value


def read_all(data: bytes, steps=None, **settings) -> list:
    """Return the replies; the compiled reader and its twin must say the same of any bytes."""
    steps = list(steps or ())
    readers = [new(reader, **settings) for reader in READERS]
    ours, twins = (outcome(reader, data, steps) for reader in readers)
    assert ours == twins
    if isinstance(ours[0], type):
        kind, sentence, _ = ours
        raise kind(sentence)
    return readers[0].replies


@given(st.lists(REPLIES, max_size=4), st.lists(st.integers(1, 5000), max_size=60))
def test_replies_are_the_same_however_they_are_split(values, steps):
    data = b"".join(map(wire, values))
    assert [plain(reply) for reply in read_all(data, steps)] == [plain(value) for value in values]


@given(REPLIES)
def test_replies_come_byte_by_byte(value):
    data = wire(value)[:3000]
    whole = read_all(data)
    assert [plain(r) for r in read_all(data, [1] * len(data))] == [plain(r) for r in whole]


@pytest.mark.parametrize("size", [SMALL_BYTES - 1, SMALL_BYTES, 65_536, 1_000_000])
@pytest.mark.parametrize("room", [0, 1])
@pytest.mark.parametrize("made", READERS)
def test_a_large_value_is_received_where_it_shall_lie(size, room, made):
    target = bytearray(size + room)
    reader = new(made, into=memoryview(target))
    value = bytes(range(256)) * (size // 256 + 1)
    feed(reader, wire(value[:size]), [100, 5, 70_000])
    assert plain(reader.replies[0]) == value[:size]
    if size > SMALL_BYTES:
        assert target[:size] == value[:size]
        assert reader.replies[0].obj is target


@given(st.binary(max_size=200))
def test_any_bytes_give_replies_or_a_resp_error(data):
    with contextlib.suppress(RespError):
        read_all(data)


@given(
    st.lists(REPLIES, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from(b"0129-+:$*\r\n x")), max_size=4),
    st.lists(st.integers(1, 5000), max_size=20),
    st.integers(0, 100_000),
)
def test_damaged_replies_give_replies_or_a_resp_error(values, damage, steps, max_bytes):
    data = bytearray(b"".join(map(wire, values)))
    for place, byte in damage:
        data[place % len(data)] = byte
    with contextlib.suppress(RespError):
        read_all(bytes(data), steps, count=3, max_bytes=max_bytes)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
        b"$x\r\n",
        b"$1_0\r\n",
        b"$-2\r\n",
        b":1.5\r\n",
        b": 1\r\n",
        b":" + b"9" * 1000 + b"\r\n",
        b"$3\r\nabcde\r\n",
        b"*1\r\n" * (MAX_DEPTH + 1),
        b"*2000000000\r\n",
        b"*" + b"9" * 20 + b"\r\n",
        b"$-" + b"9" * 20 + b"\r\n",
        b"+" + b"x" * SCRATCH_BYTES,
    ],
)
def test_what_is_no_resp_is_refused(data):
    with pytest.raises(RespError):
        read_all(data)


def test_a_value_that_is_announced_too_large_takes_no_memory():
    tracemalloc.start()
    try:
        for announced in (b"$536936450\r\n", b"$99999999999999\r\n"):
            with pytest.raises(OversizeError):
                read_all(announced)
        with pytest.raises(OversizeError):
            read_all(b"$1100000\r\n", max_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_endless_reply_is_cut_off():
    with pytest.raises(OversizeError):
        read_all(b"*1000000\r\n" + b"$10\r\n0123456789\r\n" * 20_000, max_bytes=100_000)


def test_what_was_not_asked_for_is_refused():
    with pytest.raises(RespError, match="not asked for"):
        read_all(b"+OK\r\n:1\r\n", count=1)


@given(st.lists(st.lists(BULKS, min_size=1, max_size=4), max_size=4))
def test_commands_are_arrays_of_bulk_strings(commands):
    sent = b"".join(resp.encode(commands))
    assert [plain(reply) for reply in read_all(sent)] == commands


@given(st.lists(BULKS, max_size=6))
def test_pieces_are_one_argument_and_large_ones_are_not_copied(pieces):
    views = [memoryview(piece) for piece in pieces]
    buffers = resp.encode([(b"SET", b"key", views, b"PX")])
    expected = [b"SET", b"key", b"".join(pieces), b"PX"]
    assert [plain(reply) for reply in read_all(b"".join(buffers))] == [expected]
    large = [view for view in views if view.nbytes > SMALL_BYTES]
    assert [buffer for buffer in buffers if isinstance(buffer, memoryview)] == large


def test_the_first_error_is_raised_from_wherever_it_is():
    resp.check([b"OK", None, [1, [b"x"]], 3])
    error = ErrorReply("OOM no memory")
    assert error.code == "OOM"
    for replies in ([error, ErrorReply("EXECABORT")], [b"OK", [1, error]]):
        with pytest.raises(ErrorReply, match="OOM no memory"):
            resp.check(replies)
