"""What happened in a job, one JSON object a line, for people and for ``smlt report``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to a file. Each line is complete or, after a crash, the torn last one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the current time."""
        line = json.dumps({"t": round(time.time(), 3), "event": event, **fields})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
