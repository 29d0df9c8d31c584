"""The Redis serialisation protocol, version 2, without input or output: requests and replies.

Source: the RESP specification (redis.io/docs/latest/develop/reference/protocol-spec).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Union

import numpy as np

from smlt.io.parameter_store import MAX_FRAME_BYTES, Buffer

Argument = bytes | Sequence[memoryview]
"""An argument of a command; a sequence of views is one argument that is sent piece by piece."""
Command = Sequence[Argument]
Reply = Union[bytes, memoryview, int, None, "ErrorReply", list["Reply"]]

SCRATCH_BYTES = 64 << 10
SMALL_BYTES = 16 << 10
"""Bulk strings up to this size come as bytes; larger ones are received in place, as a view."""
MAX_DEPTH = 8
MAX_ELEMENTS = 1 << 20
_TEXT, _ERROR, _NUMBER, _BULK, _ARRAY = b"+-:$*"
_UNENDED = "a bulk string of the reply does not end where it says"


class RespError(Exception):
    """The other side does not speak the protocol, or says more than was asked for."""


class OversizeError(RespError):
    """A value larger than its receiver accepts."""


class ErrorReply(Exception):
    """An error that the server replied; ``code`` is its first word."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


def check(replies: Sequence[Reply]) -> None:
    """Raise the first error among the replies; in a transaction it is why EXEC was refused."""
    for reply in replies:
        if isinstance(reply, ErrorReply):
            raise reply
        if isinstance(reply, list):
            check(reply)


def encode(commands: Iterable[Command]) -> list[Buffer]:
    """Return the buffers that carry the commands; large arguments are referred to, not copied."""
    buffers: list[Buffer] = []
    text = bytearray()
    for command in commands:
        text += b"*%d\r\n" % len(command)
        for argument in command:
            if isinstance(argument, bytes):
                text += b"$%d\r\n%b\r\n" % (len(argument), argument)
                continue
            text += b"$%d\r\n" % sum(piece.nbytes for piece in argument)
            for piece in argument:
                if piece.nbytes <= SMALL_BYTES:
                    text += piece
                    continue
                buffers += (text, piece)
                text = bytearray()
            text += b"\r\n"
    buffers.append(text)
    return buffers


class ReplyReader:
    """Turns received bytes into replies; large values are received where they shall lie.

    ``get_buffer`` says where the next bytes go, ``buffer_updated`` that they have come: what
    both a socket's ``recv_into`` and asyncio's buffered protocols need. After an error the
    reader is of no more use, nor is the connection.
    """

    def __init__(self, on_reply: Callable[[Reply], None]) -> None:
        self._on_reply = on_reply
        self._text = bytearray(SCRATCH_BYTES)
        self._scratch = memoryview(self._text)
        self._start = self._end = 0
        self._arrays: list[tuple[list[Reply], int]] = []
        self._bulk: memoryview | None = None
        self._filled = 0
        self._into: memoryview | None = None
        self._allowed = MAX_FRAME_BYTES

    def expect(self, *, into: memoryview | None = None, max_bytes: int = MAX_FRAME_BYTES) -> None:
        """Place the next large value in ``into`` if it fits, and accept ``max_bytes`` in all."""
        self._into = into
        self._allowed = max_bytes + SCRATCH_BYTES

    @property
    def fills_value(self) -> bool:
        """Whether all of the buffer will come: it is what a large value lacks."""
        return self._bulk is not None and self._filled < self._bulk.nbytes

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Return where to receive into; never empty."""
        if self._bulk is not None and self._filled < self._bulk.nbytes:
            return self._bulk[self._filled :]
        return self._scratch[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with ``nbytes`` bytes that were received into the buffer.

        Raises:
            RespError: they are no RESP2, or exceed what is accepted.
        """
        if self._bulk is not None and self._filled < self._bulk.nbytes:
            self._filled += nbytes
            return
        self._end += nbytes
        self._parse()
        self._compact()

    def _parse(self) -> None:
        """Take all elements that are whole off the scratch buffer. This is where replies cost."""
        text = self._text
        while self._bulk is None or self._finish_bulk(self._bulk):
            start, end = self._start, self._end
            stop = text.find(b"\r\n", start, end)
            if stop < 0:
                if end - start == SCRATCH_BYTES:
                    raise RespError(f"a line of the reply is longer than {SCRATCH_BYTES} bytes")
                return
            kind, line = text[start], text[start + 1 : stop]
            value: Reply
            if kind == _BULK and line != b"-1":
                length = _integer(line)
                if length > SMALL_BYTES or length < 0:
                    self._take(stop + 2 - start)
                    self._begin_bulk(length)
                    continue
                begin, stop = stop + 2, stop + 2 + length
                if length > self._allowed:
                    self._allow(length)
                if stop + 2 > end:
                    return
                if text[stop : stop + 2] != b"\r\n":
                    raise RespError(_UNENDED)
                value = bytes(text[begin:stop])
            elif kind == _ARRAY:
                self._take(stop + 2 - start)
                self._begin_array(_integer(line))
                continue
            else:
                value = _simple(kind, bytes(line))
            self._take(stop + 2 - start)
            self._emit(value)

    def _begin_bulk(self, length: int) -> None:
        """Go on with a large value, as much of it as has come."""
        self._allow(length)
        if self._into is not None and length <= self._into.nbytes:
            self._bulk = self._into.cast("B")[:length]
            self._into = None
        else:
            # Not a bytearray: that would be cleared first, page by page.
            self._bulk = np.empty(length, np.uint8).data
        self._filled = min(length, self._end - self._start)
        self._bulk[: self._filled] = self._scratch[self._start : self._start + self._filled]
        self._start += self._filled

    def _finish_bulk(self, bulk: memoryview) -> bool:
        if self._filled < bulk.nbytes or self._end - self._start < 2:
            return False
        if self._text[self._start : self._start + 2] != b"\r\n":
            raise RespError(_UNENDED)
        self._start += 2
        self._bulk = None
        self._emit(bulk.toreadonly())
        return True

    def _begin_array(self, count: int) -> None:
        if count > MAX_ELEMENTS or len(self._arrays) == MAX_DEPTH:
            raise OversizeError(f"the reply has an array of {count} elements in {MAX_DEPTH} levels")
        if count <= 0:
            self._emit(None if count < 0 else [])
        else:
            self._arrays.append(([], count))

    def _emit(self, value: Reply) -> None:
        while self._arrays:
            items, count = self._arrays[-1]
            items.append(value)
            if len(items) < count:
                return
            self._arrays.pop()
            value = items
        self._on_reply(value)

    def _take(self, nbytes: int) -> None:
        """Go on behind so many bytes of the scratch buffer."""
        self._start += nbytes
        self._allow(nbytes)

    def _allow(self, nbytes: int) -> None:
        self._allowed -= nbytes
        if nbytes < 0 or self._allowed < 0:
            raise OversizeError(f"the reply is larger than the receiver accepts: {nbytes} bytes")

    def _compact(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SCRATCH_BYTES and self._start:
            rest = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(rest)] = rest
            self._start, self._end = 0, len(rest)


def _simple(kind: int, text: bytes) -> Reply:
    """Return what a line of a kind of its own says."""
    if kind == _NUMBER:
        return _integer(text)
    if kind == _TEXT:
        return text
    if kind == _ERROR:
        return ErrorReply(text.decode("utf-8", "replace"))
    if kind == _BULK:
        return None
    raise RespError(f"the reply begins with {bytes((kind,)) + text[:15]!r}, which is no RESP2")


def _integer(text: bytes | bytearray) -> int:
    # int() alone would also take spaces, underscores and a number of any length.
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > 20:
        raise RespError(f"the reply has {bytes(text[:24])!r} where a number belongs")
    return int(text)
