"""The embedded cloud put together: Lambda, its logs and Valkey over one run directory."""

import asyncio
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from smlt.embedded.cloud_api import CloudApi
from smlt.embedded.event_queue import EventQueue
from smlt.embedded.fleet import Fleet
from smlt.embedded.functions import Functions
from smlt.embedded.host import MARK, Host, base_variables, visible_paths
from smlt.embedded.hostile import Hostility
from smlt.embedded.invoke_api import InvokeApi
from smlt.embedded.isolation import Isolation, detect
from smlt.embedded.lambda_api import LambdaApi, answer_errors
from smlt.embedded.lifetime import Lifetime
from smlt.embedded.limits import Limits
from smlt.embedded.log_streams import LogGroups
from smlt.embedded.logs_api import LogsApi
from smlt.embedded.loopback import listen, refuse_browsers
from smlt.embedded.valkey_server import ValkeyServer
from smlt.errors import CloudError

logger = logging.getLogger(__name__)

JANITOR = Path(__file__).with_name("janitor.py")
LOCK_S = 15.0
JANITOR_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What one embedded cloud is asked to be."""

    run_dir: Path
    limits: Limits = field(default_factory=Limits)
    isolation: str = "auto"
    with_parameter_store: bool = True
    maxmemory: str | None = None
    visible: Sequence[str] = ()
    region: str = "us-east-1"
    linger_s: float = 15.0
    chaos: int | None = None
    """Seed of what an unkind Lambda does; None is a kind one."""


class Service:
    """Runs the embedded cloud as an async context; everything it started ends with it."""

    def __init__(
        self,
        config: ServiceConfig,
        *,
        inherited: Mapping[str, str],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._inherited = inherited
        self._now = now
        self._cloud_id = uuid.uuid4().hex[:12]
        self._stack = AsyncExitStack()
        self._hostility = None if config.chaos is None else Hostility(config.chaos)
        self._isolation: Isolation | None = None
        self._valkey: ValkeyServer | None = None
        self._port = 0
        self.lifetime = Lifetime(config.linger_s)

    async def __aenter__(self) -> Self:
        run_dir = self._config.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock = await self._lock(run_dir / "cloud.lock")
            self._stack.callback(os.close, lock)
            await self._open(lock)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.lifetime.end()
        await self._stack.aclose()

    def ready(self) -> dict[str, Any]:
        """What the client needs to know; also the content of RUN/cloud.json."""
        if self._isolation is None:
            raise CloudError("the embedded cloud has not started yet")
        notices = list(self._isolation.notices)
        if self._valkey is not None and self._valkey.notice is not None:
            notices.append(self._valkey.notice)
        if self._hostility is not None:
            notices.append(self._hostility.notice)
        return {
            "endpoint": f"http://127.0.0.1:{self._port}",
            "parameters": self._valkey.url if self._valkey is not None else None,
            "pid": os.getpid(),
            "valkey_pid": self._valkey.pid if self._valkey is not None else None,
            "isolation": self._isolation.as_json(),
            "notices": notices,
        }

    async def _lock(self, path: Path) -> int:
        """Take the run directory. The janitor of a killed cloud holds it until all is clear."""
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _holder_lives(path) or time.monotonic() > deadline:
                    os.close(lock)
                    raise CloudError(
                        f"another embedded cloud runs in {path.parent} (see cloud.json there); "
                        "end it, or choose another --run-dir"
                    ) from None
                await asyncio.sleep(0.05)
            else:
                return lock

    async def _open(self, lock: int) -> None:
        config, stack = self._config, self._stack
        shutil.rmtree(config.run_dir / "environments", ignore_errors=True)
        base_env = base_variables(self._inherited, self._cloud_id)
        if config.with_parameter_store:
            self._valkey = ValkeyServer(config.run_dir, env=base_env, maxmemory=config.maxmemory)
        own = [] if self._valkey is None else [str(self._valkey.directory)]
        visible = visible_paths([str(config.run_dir), *config.visible, *own])
        isolation = self._isolation = await asyncio.to_thread(
            detect, config.isolation, self._cloud_id, visible
        )
        self._start_janitor(lock, isolation)
        stack.callback(shutil.rmtree, config.run_dir / "environments", ignore_errors=True)
        if self._valkey is not None:
            await stack.enter_async_context(self._valkey)
        host = Host(
            cloud_id=self._cloud_id,
            run_dir=config.run_dir,
            limits=config.limits,
            isolation=isolation,
            logs=LogGroups(config.run_dir / "logs", self._now),
            visible=visible,
            base_env=base_env,
            now=self._now,
        )
        functions = Functions(config.limits, config.region, self._now)
        fleet = await stack.enter_async_context(Fleet(functions, host))
        self._port = await self._serve(functions, fleet, host)
        self._announce()
        for notice in self.ready()["notices"]:
            logger.warning("%s", notice)

    async def _serve(self, functions: Functions, fleet: Fleet, host: Host) -> int:
        events = await self._stack.enter_async_context(
            EventQueue(fleet, host.limits, self._hostility)
        )
        app = web.Application(
            client_max_size=host.limits.request_bytes,
            middlewares=[refuse_browsers, answer_errors],
        )
        LambdaApi(functions, fleet, host).add_routes(app)
        InvokeApi(functions, fleet, events, host, self._hostility).add_routes(app)
        LogsApi(host.logs).add_routes(app)
        CloudApi(self.ready, fleet, events, self.lifetime).add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._stack.push_async_callback(runner.cleanup)
        return await listen(runner)

    def _announce(self) -> None:
        path = self._config.run_dir / "cloud.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.ready()))
        draft.rename(path)
        self._stack.callback(path.unlink, missing_ok=True)

    def _start_janitor(self, lock: int, isolation: Isolation) -> None:
        """Start who clears up, and make it the last step of our own end, too."""
        remove = [str(self._config.run_dir / name) for name in ("cloud.json", "environments")]
        if self._valkey is not None:
            remove += self._valkey.leftovers
        task = {
            "cgroups": isolation.tree.directories,
            "mark": f"{MARK}={self._cloud_id}",
            "remove": remove,
        }
        logs = self._config.run_dir / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / "cloud.log").open("ab") as log:
            janitor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(JANITOR), json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
            )
        self._stack.push_async_callback(self._finish_janitor, janitor)

    async def _finish_janitor(self, janitor: subprocess.Popen[bytes]) -> None:
        if janitor.stdin is not None:
            janitor.stdin.close()
        try:
            await asyncio.to_thread(janitor.wait, JANITOR_S)
        except subprocess.TimeoutExpired:
            logger.exception("the janitor did not end within %d s", JANITOR_S)


def _holder_lives(lock: Path) -> bool:
    """Whether the cloud that announced itself beside the lock is a living process."""
    try:
        pid = int(json.loads(lock.with_name("cloud.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return False
    return Path(f"/proc/{pid}").exists()
