"""Log groups and streams: events on disk as text, their places in memory as numbers."""

import bisect
import shutil
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LAMBDA_GROUP_PREFIX = "/aws/lambda/"
EVENT_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line (or traceback); timestamps are milliseconds since the epoch."""

    timestamp: int
    message: str
    stream: str
    index: int


class LogStream:
    """One environment's log: appended by the environment, read by the logs API.

    The file holds "time message" lines; a message of several lines continues as it is.
    """

    def __init__(self, name: str, path: Path, now: Callable[[], float]) -> None:
        self.name = name
        self.created = _ms(now())
        self._now = now
        self._path = path
        self._timestamps = array("q")
        self._offsets = array("q")
        self._lengths = array("q")
        self._end = 0
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        # Appended last: a reader on another thread finds everything below this number complete.
        return len(self._lengths)

    @property
    def first_timestamp(self) -> int:
        return self._timestamps[0] if self._timestamps else self.created

    @property
    def last_timestamp(self) -> int:
        return self._timestamps[-1] if self._timestamps else self.created

    @property
    def stored_bytes(self) -> int:
        return self._end

    def write(self, message: str) -> None:
        """Append one event, stamped now."""
        now_s = self._now()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        prefix = f"{stamp}.{_ms(now_s) % 1000:03d}Z ".encode()
        # The runtime client joins the lines of a traceback with carriage returns.
        body = message.rstrip("\r\n").replace("\r", "\n").encode()[:EVENT_BYTES]
        self._file.write(prefix + body + b"\n")
        self._timestamps.append(max(_ms(now_s), self.last_timestamp if self._timestamps else 0))
        self._offsets.append(self._end + len(prefix))
        self._lengths.append(len(body))
        self._end += len(prefix) + len(body) + 1

    def read(self, first: int, last: int) -> Iterator[LogEvent]:
        """Events number first to last - 1."""
        indices = range(first, min(last, len(self)))
        # A stream without events has no file, and one of a deleted group has lost it.
        if not indices or not self._path.exists():
            return
        with self._path.open("rb") as file:
            for index in indices:
                file.seek(self._offsets[index])
                message = file.read(self._lengths[index]).decode("utf-8", "replace")
                yield LogEvent(self._timestamps[index], message, self.name, index)

    def between(self, start: int | None, end: int | None) -> tuple[int, int]:
        """The range of events with start <= timestamp < end."""
        first = 0 if start is None else bisect.bisect_left(self._timestamps, start)
        last = len(self) if end is None else bisect.bisect_left(self._timestamps, end)
        return first, max(first, last)

    def tail(self, first: int, size: int) -> bytes:
        """At most the last size bytes of the events from number first on."""
        text = "".join(f"{event.message}\n" for event in self.read(first, len(self)))
        return text.encode()[-size:]

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LogGroups:
    """All log groups of one embedded cloud, one per function."""

    def __init__(self, directory: Path, now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self.groups: dict[str, dict[str, LogStream]] = {}
        self.created: dict[str, int] = {}

    def open_stream(self, function: str, name: str) -> LogStream:
        """A new stream of a function's group; its file is RUN/logs/<function>/<stream>.log."""
        group = LAMBDA_GROUP_PREFIX + function
        file_name = name.replace("/", "-").replace("[", "").replace("]", "-").replace("$", "")
        path = self._directory / function / f"{file_name}.log"
        stream = LogStream(name, path, self._now)
        self.groups.setdefault(group, {})[name] = stream
        self.created.setdefault(group, stream.created)
        return stream

    def delete(self, group: str) -> bool:
        """Forget a group and its files; False when there is none."""
        if self.groups.pop(group, None) is None:
            return False
        self.created.pop(group)
        shutil.rmtree(self._directory / group.removeprefix(LAMBDA_GROUP_PREFIX), ignore_errors=True)
        return True


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
