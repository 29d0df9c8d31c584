"""`reply_reader` in Python: the same replies, and the same words for what is wrong."""

import numpy as np

from smlt._core import replies as words
from smlt._core.replies import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_ELEMENTS,
    MAX_LENGTH,
    SCRATCH_BYTES,
    SMALL_BYTES,
    ErrorReply,
    Reply,
)

_TEXT, _ERROR, _NUMBER, _BULK, _ARRAY = b"+-:$*"


class ReplyReader:
    """Turns received bytes into replies."""

    def __init__(self) -> None:
        self._text = bytearray(SCRATCH_BYTES)
        self._scratch = memoryview(self._text)
        self._start = self._end = 0
        self._arrays: list[tuple[list[Reply], int]] = []
        self._bulk: memoryview | None = None
        self._is_lent = False
        self._filled = 0
        self.expect(0, max_bytes=0)

    def expect(self, count: int, *, max_bytes: int, into: memoryview | None = None) -> None:
        """Read so many replies of ``max_bytes`` in all; the next large value goes to ``into``."""
        self.replies: list[Reply] = []
        self.missing = count
        self._into = into
        self._allowed = max_bytes + SCRATCH_BYTES

    @property
    def fills_value(self) -> bool:
        """Whether all of the buffer will come: it is what a large value lacks."""
        return self._bulk is not None and self._filled < self._bulk.nbytes

    def get_buffer(self) -> memoryview:
        """Return where to receive into; never empty."""
        if self._bulk is not None and self._filled < self._bulk.nbytes:
            return self._bulk[self._filled :]
        return self._scratch[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with ``nbytes`` bytes that were received into the buffer.

        Raises:
            RespError: they are no RESP2, exceed what is accepted, or were not asked for.
        """
        if self._bulk is not None and self._filled < self._bulk.nbytes:
            self._filled += nbytes
            return
        self._end += nbytes
        self._parse()
        self._compact()

    def _parse(self) -> None:
        """Take all elements that are whole off the scratch buffer."""
        text = self._text
        while self._bulk is None or self._finish_bulk(self._bulk):
            start, end = self._start, self._end
            stop = text.find(b"\r\n", start, end)
            if stop < 0:
                if end - start == SCRATCH_BYTES:
                    raise words.endless_line()
                return
            if stop == start:
                raise words.no_resp(b"")
            kind, line = text[start], bytes(text[start + 1 : stop])
            value: Reply = None
            if kind == _BULK:
                length = _length(line)
                if length > SMALL_BYTES or length < -1:
                    self._take(stop + 2 - start)
                    self._begin_bulk(length)
                    continue
                if length >= 0:
                    begin, stop = stop + 2, stop + 2 + length
                    if length > self._allowed:
                        self._allow(length)
                    if stop + 2 > end:
                        return
                    if text[stop : stop + 2] != b"\r\n":
                        raise words.unended()
                    value = bytes(text[begin:stop])
            elif kind == _ARRAY:
                self._take(stop + 2 - start)
                self._begin_array(_length(line))
                continue
            else:
                value = _simple(kind, line)
            self._take(stop + 2 - start)
            self._emit(value)

    def _begin_bulk(self, length: int) -> None:
        """Go on with a large value, as much of it as has come."""
        self._allow(length)
        if self._into is not None and length <= self._into.nbytes:
            self._bulk = self._into.cast("B")[:length]
            self._is_lent = True
            self._into = None
        else:
            self._bulk = np.empty(length, np.uint8).data
            self._is_lent = False
        self._filled = min(length, self._end - self._start)
        self._bulk[: self._filled] = self._scratch[self._start : self._start + self._filled]
        self._start += self._filled

    def _finish_bulk(self, bulk: memoryview) -> bool:
        if self._filled < bulk.nbytes or self._end - self._start < 2:
            return False
        if self._text[self._start : self._start + 2] != b"\r\n":
            raise words.unended()
        self._start += 2
        self._bulk = None
        self._emit(bulk.toreadonly() if self._is_lent else bytes(bulk))
        return True

    def _begin_array(self, count: int) -> None:
        if count > MAX_ELEMENTS or len(self._arrays) == MAX_DEPTH:
            raise words.too_many()
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
        if not self.missing:
            raise words.unasked()
        self.missing -= 1
        self.replies.append(value)

    def _take(self, nbytes: int) -> None:
        """Go on behind so many bytes of the scratch buffer."""
        self._start += nbytes
        self._allow(nbytes)

    def _allow(self, nbytes: int) -> None:
        if nbytes < 0 or nbytes > self._allowed:
            raise words.too_large(nbytes)
        self._allowed -= nbytes

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
    raise words.no_resp(bytes((kind,)) + text)


def _length(text: bytes) -> int:
    return max(-2, min(_integer(text), MAX_LENGTH))


def _integer(text: bytes) -> int:
    # int() alone would also take spaces, underscores and a number of any length.
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise words.no_number(text)
    return int(text)
