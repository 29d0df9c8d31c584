"""End the process when its trainer does not: nothing can stop a running invocation from outside."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Self

# So long before Lambda's own limit that the last words still reach the log.
_MARGIN_S = 2.0
_EXIT_CODE = 70
_LAST_WHY = "the function's time limit"


class Watchdog:
    """A thread with a deadline, never later than the function's own. A context manager."""

    def __init__(self, deadline: float) -> None:
        """Store the function's own deadline, by the monotonic clock."""
        self._deadline = self._last = deadline - _MARGIN_S
        self._why = _LAST_WHY
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def bite_within(self, seconds: float, why: str) -> None:
        """End the process unless it has ended by itself in so many seconds."""
        with self._changed:
            sooner = time.monotonic() + seconds
            if sooner < self._deadline:
                self._deadline, self._why = sooner, why
                self._changed.notify()

    def allow(self, seconds: float, why: str) -> None:
        """Give the process so many seconds from now, whatever was said before."""
        with self._changed:
            self._deadline, self._why = self._last, _LAST_WHY
        self.bite_within(seconds, why)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                remaining = self._deadline - time.monotonic()
                if remaining <= 0:
                    sys.stderr.write(f"watchdog: ending the process: {self._why} has passed\n")
                    sys.stderr.flush()
                    os._exit(_EXIT_CODE)
                self._changed.wait(remaining)
