"""One execution environment: a process running AWS's runtime client, held to Lambda's limits."""

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from smlt.embedded.functions import FunctionVersion
from smlt.embedded.isolation import Isolation
from smlt.embedded.limits import MB, Limits, vcpus
from smlt.embedded.log_lines import Report, end_line, init_report_line, start_line
from smlt.embedded.log_streams import LogGroups
from smlt.embedded.process import ChildProcess, LaunchSpec
from smlt.embedded.resource_group import ResourceGroup
from smlt.embedded.runtime_api import TOO_LARGE_RESPONSE, Ending, Invocation, RuntimeApi

TAIL_BYTES = 4096
REMOVE_S = 5.0
FUNCTION_OOM_SCORE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all environments of one embedded cloud share."""

    cloud_id: str
    run_dir: Path
    limits: Limits
    isolation: Isolation
    logs: LogGroups
    visible: Sequence[str]
    base_env: Mapping[str, str]
    """What every process gets beside Lambda's own variables: PATH, region, credentials."""
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An invocation's answer; error is X-Amz-Function-Error, None when it went well."""

    payload: bytes
    error: str | None
    log_tail: bytes
    report: Report


class Environment:
    """One environment of one function version: started once, then invoked one event at a time.

    It ends by `end`, or by itself when its process does; `on_end` is called in both cases.
    """

    def __init__(
        self, function: FunctionVersion, host: Host, on_end: Callable[["Environment"], None]
    ) -> None:
        self.function = function
        self.state = "starting"
        self.request_id: str | None = None
        self.idle_since = 0.0
        self.retired = False
        self._host = host
        self._on_end = on_end
        self._id = uuid.uuid4().hex
        day = time.strftime("%Y/%m/%d", time.gmtime(host.now()))
        self.stream = host.logs.open_stream(function.name, f"{day}/[{function.version}]{self._id}")
        self._scratch = host.run_dir / "environments" / self._id
        self._api = RuntimeApi(host.limits)
        self._child: ChildProcess | None = None
        self._group: ResourceGroup | None = None
        self._groups_made = 0
        self._is_ready = False
        self._init_ms: float | None = None
        self._peak_bytes = 0

    @property
    def pid(self) -> int | None:
        return None if self._child is None or self._child.exited.done() else self._child.pid

    @property
    def _is_alive(self) -> bool:
        return self.state != "ended" and self._is_ready and self.pid is not None

    def describe(self) -> dict[str, Any]:
        """What `/_smlt/environments` shows; rss is anonymous memory in bytes."""
        return {
            "function": self.function.name,
            "version": self.function.version,
            "memory_mb": self.function.memory_mb,
            "pid": self.pid,
            "pids": self._group.pids() if self._group is not None else [],
            "state": self.state,
            "request_id": self.request_id,
            "rss": self._group.memory_bytes()[0] if self._group is not None else 0,
            "log_stream": self.stream.name,
        }

    async def start(self) -> None:
        """Run the init phase. A failed one is tried again by the first invocation, as on Lambda."""
        await self._api.__aenter__()
        begun = time.monotonic()
        ending = await self._init(self._host.limits.init_s, boost=True)
        self._init_ms = (time.monotonic() - begun) * 1000
        if not self._is_ready:
            self._log_failed_init(ending, self._init_ms, "init")

    async def invoke(self, invocation: Invocation) -> Outcome:
        """Run one event to its end, whatever that is. Only one at a time."""
        function = self.function
        self.request_id = invocation.request_id
        if self.state != "ended":
            self.state = "busy"
        first_event = len(self.stream)
        begun = time.monotonic()
        self._peak_bytes = 0
        self._measure_memory()
        ending = await self._run(invocation, begun)
        duration_ms = (time.monotonic() - begun) * 1000
        if ending.kind == "timeout":
            duration_ms = max(duration_ms, function.timeout_s * 1000.0)
        self._measure_memory()
        if self._child is not None:
            self._child.drain()
        body = self._explain(ending, invocation.request_id)
        report = self._report(ending, invocation.request_id, duration_ms)
        self.stream.write(end_line(invocation.request_id))
        self.stream.write(report.line())
        self._init_ms, self.request_id = None, None
        tail = self.stream.tail(first_event, TAIL_BYTES)
        # The runtime client ends itself when an answer of its is refused for its size.
        is_spoiled = ending.error_type == TOO_LARGE_RESPONSE
        if ending.kind in ("response", "error") and self._is_alive and not is_spoiled:
            self.state, self.idle_since = "idle", time.monotonic()
        else:
            self.end()
        error = None if ending.kind == "response" else "Unhandled"
        return Outcome(body, error, tail, report)

    def end(self) -> None:
        """Kill every process of the environment and release what it holds. Idempotent."""
        if self.state == "ended":
            return
        self.state = "ended"
        self._kill()
        self._api.end_phase(Ending("exit", returncode=-signal.SIGKILL))
        self._on_end(self)

    async def close(self) -> None:
        """After `end`: wait until the processes are gone, and remove their traces."""
        await self._clear_process()
        await self._api.__aexit__()
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        self.stream.close()

    def check_memory(self) -> None:
        """Kill the processes when they use more than the function's memory."""
        if self.state in ("ended", "idle") or not self._host.isolation.limits_memory:
            return
        if self._measure_memory() > self.function.memory_mb * MB:
            self._api.end_phase(Ending("memory"))
            self._kill()

    async def _run(self, invocation: Invocation, begun: float) -> Ending:
        """The invoke phase, with the second attempt at init where the first has failed."""
        timeout_s = float(self.function.timeout_s)
        if not self._is_ready:
            await self._clear_process()
            ending = await self._init(timeout_s, boost=False)
            if not self._is_ready:
                self._log_failed_init(ending, (time.monotonic() - begun) * 1000, "invoke")
                self.stream.write(start_line(invocation.request_id, self.function.version))
                return ending
        self.stream.write(start_line(invocation.request_id, self.function.version))
        if self._init_ms is not None and self._group is not None:
            self._group.set_vcpus(vcpus(self.function.memory_mb))
        left_s = timeout_s - (time.monotonic() - begun)
        phase = self._api.begin_phase()
        if self._child is not None and self._child.exited.done():
            return self._exit_ending(self._child.exited.result())
        deadline_ms = int((self._host.now() + left_s) * 1000)
        self._api.offer(invocation, arn=self.function.arn, deadline_ms=deadline_ms)
        return await self._end_of(phase, left_s)

    async def _init(self, limit_s: float, *, boost: bool) -> Ending:
        if self.state == "ended":
            return Ending("exit", returncode=-signal.SIGKILL)
        phase = self._api.begin_phase()
        self._launch(None if boost else vcpus(self.function.memory_mb))
        ending = await self._end_of(phase, limit_s)
        self._is_ready = ending.kind == "ready"
        if self._child is not None:
            self._child.drain()
        if not self._is_ready:
            self._kill()
        return ending

    async def _end_of(self, phase: asyncio.Future[Ending], limit_s: float) -> Ending:
        try:
            return await asyncio.wait_for(asyncio.shield(phase), limit_s)
        except TimeoutError:
            self._api.end_phase(Ending("timeout"))
            self._kill()
            return phase.result()

    def _launch(self, vcpu_limit: float | None) -> None:
        function, isolation = self.function, self._host.isolation
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._groups_made += 1
        group = isolation.create_group(
            f"{self._id}-{self._groups_made}", function.memory_mb, function.ephemeral_mb
        )
        group.set_vcpus(vcpu_limit)
        spec = LaunchSpec(
            argv=[sys.executable, "-m", "awslambdaric", function.handler],
            env=self._variables(),
            cwd=str(function.code.root),
            cgroup_procs=group.procs_files,
            namespace=isolation.namespace,
            tmp_mb=function.ephemeral_mb,
            visible=self._host.visible,
            oom_score_adj=FUNCTION_OOM_SCORE,
        )
        child = ChildProcess(spec, on_line=self.stream.write, on_exit=self._on_exit)
        group.lead_by(child.pid)
        self._child, self._group = child, group

    def _variables(self) -> dict[str, str]:
        """What Lambda sets; the task root comes first on the path, then what plays the layers."""
        function, root = self.function, str(self.function.code.root)
        paths = [root, *filter(None, [self._host.base_env.get("PYTHONPATH")])]
        variables = {
            **self._host.base_env,
            **function.environment,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": function.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": self.stream.name,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._api.port}",
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "LAMBDA_TASK_ROOT": root,
            "LAMBDA_RUNTIME_DIR": sys.prefix,
            "PYTHONPATH": os.pathsep.join(
                filter(None, [*paths, function.environment.get("PYTHONPATH")])
            ),
            "TZ": function.environment.get("TZ", ":UTC"),
            "_HANDLER": function.handler,
            "_SMLT_CLOUD": self._host.cloud_id,
        }
        if self._host.isolation.namespace is None:
            variables.setdefault("TMPDIR", str(self._scratch))
        return variables

    def _on_exit(self, returncode: int) -> None:
        self._api.end_phase(self._exit_ending(returncode))
        if self.state == "idle":
            self.end()

    def _exit_ending(self, returncode: int) -> Ending:
        if returncode == -signal.SIGKILL and self._group is not None and self._group.oom_kills():
            return Ending("memory")
        return Ending("exit", returncode=returncode)

    def _kill(self) -> None:
        if self._group is not None:
            self._group.kill()
        if self._child is not None:
            self._child.kill()

    async def _clear_process(self) -> None:
        """Wait for the killed process to be gone and remove its group."""
        deadline = time.monotonic() + REMOVE_S
        if self._child is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._child.exited), REMOVE_S)
        while self._group is not None and time.monotonic() < deadline:
            self._group.kill()
            if self._group.remove():
                self._group = None
            else:
                await asyncio.sleep(0.01)

    def _measure_memory(self) -> int:
        """Bytes in use: anonymous memory, and shared memory that is not files in /tmp."""
        if self._group is None:
            return 0
        anonymous, shared = self._group.memory_bytes()
        used = anonymous + max(0, shared - self._tmp_bytes()) if shared else anonymous
        self._peak_bytes = max(self._peak_bytes, used)
        return used

    def _tmp_bytes(self) -> int:
        """What lies in the private /tmp: a tmpfs, whose pages count as the writer's memory."""
        if self._host.isolation.namespace is None or self.pid is None:
            return 0
        try:
            room = os.statvfs(f"/proc/{self.pid}/root/tmp")
        except OSError:
            return 0
        return (room.f_blocks - room.f_bfree) * room.f_frsize

    def _explain(self, ending: Ending, request_id: str) -> bytes:
        """The answer's body; writes the platform's own line about it into the log."""
        if ending.kind in ("response", "error"):
            return ending.body
        if ending.kind == "timeout":
            what = f"Task timed out after {self.function.timeout_s:.2f} seconds"
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._host.now()))
            self.stream.write(f"{moment}Z {request_id} {what}")
            return _error_body("Sandbox.Timedout", f"RequestId: {request_id} Error: {what}")
        message = f"RequestId: {request_id} Error: {_exit_text(ending)}"
        kind = _error_type(ending) or ""
        self.stream.write(f"{message}\n{kind}")
        if ending.kind == "memory":
            self.stream.write(
                f"The function was out of memory (OOM): it used {self._peak_mb()} MB "
                f"of {self.function.memory_mb} MB and was killed."
            )
        return _error_body(kind, message)

    def _report(self, ending: Ending, request_id: str, duration_ms: float) -> Report:
        status = {"timeout": "timeout", "exit": "error", "memory": "error"}.get(ending.kind)
        if ending.kind == "error" and not self._is_ready:
            status = "error"
        return Report(
            request_id=request_id,
            duration_ms=duration_ms,
            init_ms=self._init_ms,
            memory_mb=self.function.memory_mb,
            max_memory_mb=self._peak_mb(),
            status=status,
            error_type=_error_type(ending) if status == "error" else None,
        )

    def _peak_mb(self) -> int:
        return math.ceil(self._peak_bytes / MB)

    def _log_failed_init(self, ending: Ending, init_ms: float, phase: str) -> None:
        status = "timeout" if ending.kind == "timeout" else "error"
        kind = _error_type(ending) if status == "error" else None
        self.stream.write(init_report_line(init_ms, phase=phase, status=status, error_type=kind))


def _exit_text(ending: Ending) -> str:
    if ending.kind == "memory":
        return "Runtime exited with error: signal: killed"
    if ending.returncode < 0:
        name = signal.Signals(-ending.returncode).name.removeprefix("SIG").lower()
        return f"Runtime exited with error: signal: {'killed' if name == 'kill' else name}"
    if ending.returncode == 0:
        return "Runtime exited without providing a reason"
    return f"Runtime exited with error: exit status {ending.returncode}"


def _error_type(ending: Ending) -> str | None:
    if ending.kind == "memory":
        return "Runtime.OutOfMemory"
    if ending.kind == "exit":
        return "Runtime.ExitError"
    return ending.error_type or None


def _error_body(kind: str, message: str) -> bytes:
    return dumps({"errorType": kind, "errorMessage": message}).encode()
