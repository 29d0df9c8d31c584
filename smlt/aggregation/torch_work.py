"""What a collective of ``torch.distributed`` returns at once, and what becomes of it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Work


class SmltWork(Work):
    """What a collective returns: to be waited for, here or through its future."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._settled = threading.Event()
        self._error: BaseException | None = None
        self._result = result
        self._done: torch.futures.Future[None] = torch.futures.Future()
        # Future.set_exception is a mere value to torch's C++ side; a callback's error is an error.
        self._future = self._done.then(self._outcome)
        self.source = -1
        """Rank that a message came from, where any could send it."""

    def settle(self, error: BaseException | None) -> None:
        """Wake who waits, and run the callbacks of the future, which may take their time."""
        self._error = error
        self._settled.set()
        self._done.set_result(None)

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Return when it is done; raise what went wrong. A timeout of 0 means none."""
        limit_s = timeout.total_seconds() or None
        if not self._settled.wait(limit_s):
            raise TimeoutError(f"the collective is not done after {limit_s:g} s")
        if self._error is not None:
            raise self._error
        return True

    def get_future(self) -> Any:
        return self._future

    def is_completed(self) -> bool:
        return self._settled.is_set()

    def is_success(self) -> bool:
        return self._settled.is_set() and self._error is None

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        return self._result

    def _source_rank(self) -> int:
        return self.source

    def _outcome(self, _: Any) -> Any:
        if self._error is not None:
            raise self._error
        return self._result
