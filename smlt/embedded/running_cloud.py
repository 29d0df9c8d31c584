"""A one-machine cloud that another client has started, and left: hold it, use it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Self

import aiohttp

from smlt.errors import JobHeldError

_ANSWER_S = 3.0
_BEATS = 4


class RunningCloud:
    """`async with` holds the cloud while the block runs, and ends it then.

    Get one from `find`. The cloud lives as long as somebody asks it to, and a little longer.
    """

    def __init__(self, run_dir: Path, ready: dict[str, Any], hold_s: float) -> None:
        self._run_dir = run_dir
        self._ready = ready
        self._hold_s = hold_s
        self._holding: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()

    @classmethod
    async def find(cls, run_dir: Path, *, hold_s: float) -> Self | None:
        """Return the cloud that runs in the folder, or None where none answers."""
        try:
            ready = json.loads((run_dir / "cloud.json").read_text(encoding="utf-8"))
            cloud = cls(run_dir, ready, hold_s)
            alive = await cloud._ask("POST", "hold", {"seconds": hold_s})
        except (OSError, ValueError, KeyError):
            return None
        return cloud if alive else None

    @property
    def endpoint(self) -> str:
        """URL for boto3's `lambda` and `logs` clients."""
        return str(self._ready["endpoint"])

    @property
    def parameters(self) -> str | None:
        """URL of the Valkey server, None without one."""
        url = self._ready["parameters"]
        return None if url is None else str(url)

    async def ended(self) -> str:
        """Wait until the cloud does not answer any more, as it always should; say so."""
        await self._gone.wait()
        return f"the embedded cloud has ended; see {self._run_dir / 'logs' / 'cloud.log'}"

    async def __aenter__(self) -> Self:
        self._holding = asyncio.create_task(self._hold())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._holding is not None:
            self._holding.cancel()
            await asyncio.gather(self._holding, return_exceptions=True)
        # Whoever has taken over the job uses it.
        if not isinstance(error, JobHeldError):
            await self._ask("DELETE", "cloud")

    async def _hold(self) -> None:
        while True:
            if not await self._ask("POST", "hold", {"seconds": self._hold_s}):
                self._gone.set()
                return
            await asyncio.sleep(self._hold_s / _BEATS)

    async def _ask(self, method: str, call: str, body: dict[str, Any] | None = None) -> bool:
        """Send one request; whether it was answered well."""
        limit = aiohttp.ClientTimeout(total=_ANSWER_S)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.request(method, f"{self.endpoint}/_smlt/{call}", json=body) as answer,
            ):
                return answer.status < 300
        return False
