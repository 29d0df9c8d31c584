"""Read a job's event log: one JSON object a line, appended while the job runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job."""

    time: float
    """Unix time, in seconds."""
    name: str
    fields: Mapping[str, Any]
    """All else that the line holds."""


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a log in the order in which they were written.

    The writer may be killed in mid-line, and a successor may append to what it left, so a line
    that is no event is left out; where it is not the last one, a warning says so.

    Raises:
        FileNotFoundError: there is no such log.
    """
    # Text could not be decoded line by line: a torn line may end within a character.
    with path.open("rb") as log:
        torn = 0
        for number, line in enumerate(log, 1):
            if torn:
                logger.warning("%s line %d is no event and was left out", path, torn)
            event = _parse(line)
            torn = number if event is None and line.strip() else 0
            if event is not None:
                yield event


def _parse(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        return Event(time=float(fields.pop("t")), name=str(fields.pop("event")), fields=fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
