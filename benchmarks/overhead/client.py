"""``smlt`` as a user starts it, with what its parts cost written down: ``client.py FILE ARGS…``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import spans

from smlt.cli import main
from smlt.control.event_log import EventLog
from smlt.control.job import Job
from smlt.control.progress_feed import ProgressFeed
from smlt.control.supervisor import Supervisor

WATCHED = [
    (Supervisor, "_pulse", "supervision: leases"),
    (Supervisor, "_read", "supervision: reports"),
    (Supervisor, "_follow_logs", "supervision: logs"),
    (Job, "renew", "supervision: lease on the job"),
    (ProgressFeed, "take", "supervision: reports"),
    (EventLog, "write", "events"),
]


def record(file: Path) -> None:
    """Write down what has been spent, once a pulse."""
    look = Supervisor._show

    def recorded(self: Any) -> None:
        look(self)
        with file.open("a") as lines:
            lines.write(json.dumps(spans.snapshot()) + "\n")

    Supervisor._show = recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    for owner, method, name in WATCHED:
        spans.watch(owner, method, name)
    spans.follow_threads()
    record(Path(sys.argv.pop(1)))
    sys.exit(main())
