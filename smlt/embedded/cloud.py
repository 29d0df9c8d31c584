"""Start the one-machine cloud as a process of its own, and end it: the client's side."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from smlt.errors import CloudError, JobHeldError

START_S = 30.0
STOP_S = 10.0
POLL_S = 0.02


class EmbeddedCloud:
    """`async with EmbeddedCloud(run_dir) as cloud:` gives `endpoint`, `parameters`, `notices`.

    The cloud is a process in its own session. When this one dies it ends by itself, after its
    linger time; on leaving the context it ends at once, but not under another client who has taken
    over the job (JobHeldError).

    Raises on entering:
        CloudError: it did not start; the text says why.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        parameter_store: bool = True,
        linger_s: float = 15.0,
        concurrency: int | None = None,
        maxmemory: str | None = None,
        visible: Sequence[Path] = (),
        isolation: str = "auto",
        chaos: int | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._arguments = ["--run-dir", str(run_dir), "--linger", str(linger_s)]
        self._arguments += ["--isolation", isolation, *options]
        if not parameter_store:
            self._arguments.append("--no-parameter-store")
        if chaos is not None:
            self._arguments += ["--chaos", str(chaos)]
        if concurrency is not None:
            self._arguments += ["--concurrency", str(concurrency)]
        if maxmemory is not None:
            self._arguments += ["--maxmemory", maxmemory]
        if visible:
            self._arguments += ["--visible", *map(str, visible)]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}

    @property
    def endpoint(self) -> str:
        """URL for boto3's `lambda` and `logs` clients."""
        return str(self._ready["endpoint"])

    @property
    def parameters(self) -> str | None:
        """URL of the Valkey server, None without one."""
        url = self._ready["parameters"]
        return None if url is None else str(url)

    @property
    def notices(self) -> list[str]:
        """Sentences about what this host does not permit."""
        return list(self._ready["notices"])

    @property
    def isolation(self) -> dict[str, Any]:
        return dict(self._ready["isolation"])

    @property
    def pid(self) -> int:
        return int(self._ready["pid"])

    @property
    def valkey_pid(self) -> int | None:
        """As of the start; after a restart `/_smlt/health` knows it."""
        pid = self._ready["valkey_pid"]
        return None if pid is None else int(pid)

    async def ended(self) -> str:
        """Wait until the process ends by itself, as it never should; say how it did."""
        if self._process is None:
            raise CloudError("the embedded cloud has not been started")
        code = await _wait(self._process)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"the embedded cloud {how}; see {self._run_dir / 'logs' / 'cloud.log'}"

    async def __aenter__(self) -> Self:
        self._process = self._spawn()
        try:
            self._ready = await self._wait_until_ready(self._process)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, JobHeldError):
            self._leave()
        else:
            await self._stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Not asyncio's: that kills what still runs when it is left, which another may use.
        return subprocess.Popen(
            [sys.executable, "-m", "smlt.embedded", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=self._env,
        )

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        if process.stdout is None or process.stderr is None:
            raise CloudError("the embedded cloud was started without pipes")
        try:
            line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), START_S)
        except TimeoutError as exc:
            raise CloudError(
                f"the embedded cloud was not ready within {START_S:.0f} s; see "
                f"{self._run_dir / 'logs' / 'cloud.log'}"
            ) from exc
        try:
            ready: dict[str, Any] = json.loads(line)
        except ValueError as exc:
            said = await asyncio.to_thread(process.stderr.read)
            words = said.decode(errors="replace").strip().splitlines()
            reason = words[-1] if words else "it ended without a word"
            raise CloudError(f"the embedded cloud did not start: {reason}") from exc
        return ready

    async def _stop(self) -> None:
        """Close its stdin, ask it to end, else kill it; its janitor does the rest."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        for signal_it in (process.terminate, process.kill):
            signal_it()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_wait(process), STOP_S)
                break
        # Not before: a thread may still read one, and would hold us up.
        self._leave()

    def _leave(self) -> None:
        """Close the pipes: the cloud takes its client for gone, and ends unless it is held."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()


async def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process without a thread, which would outlive whoever does not wait any more."""
    while True:
        code = process.poll()
        if code is not None:
            return code
        await asyncio.sleep(POLL_S)
