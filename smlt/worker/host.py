"""What an execution environment gives to the invocations that run in it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smlt.aggregation.transfer import shard_threads
from smlt.io.parameter_store import ParameterStore
from smlt.io.threads import Threads
from smlt.worker.warm import WarmMemory
from smlt.worker.watchdog import Watchdog

Compute = Callable[..., Awaitable[Any]]
"""Run a function on the trainer's own thread, one at a time, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Lambda's environment, a debugger's process, or a test's: the worker does not ask which."""

    code_root: Path
    """Folder that the user's modules are imported from."""
    cache_dir: Path
    """Scratch space for fetched data."""
    data_dir: Path | None = None
    """Folder of the data, where a job has none in the object store."""
    compute: Compute
    open_store: Callable[..., ParameterStore]
    watchdog: Watchdog
    memory: WarmMemory
    log_stream: str = ""
    """Where what its invocations print can be read; empty where there is no such place."""
    clock: Callable[[], float] = time.monotonic
    nonce: Callable[[], str] = secrets.token_hex
    """A word that no other invocation has."""
    threads: Callable[[], Threads] = shard_threads
    """What takes long with a shard is done by them; made for an invocation, which closes them."""
