"""One execution environment: a process running AWS's runtime client, held to Lambda's limits."""

import asyncio
import contextlib
import math
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from shutil import rmtree
from typing import Any

from smlt.embedded.ending import KILLED, TOO_LARGE_RESPONSE, Ending, error_body
from smlt.embedded.functions import FunctionVersion
from smlt.embedded.host import Host
from smlt.embedded.limits import MB, vcpus
from smlt.embedded.log_lines import Report, end_line, init_report_line, start_line
from smlt.embedded.memory_meter import MemoryMeter
from smlt.embedded.process import ChildProcess, LaunchSpec
from smlt.embedded.resource_group import ResourceGroup
from smlt.embedded.runtime_api import Invocation, RuntimeApi

TAIL_BYTES = 4096
REMOVE_S = 5.0
FUNCTION_OOM_SCORE = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """An invocation's answer; error is X-Amz-Function-Error, None when it went well."""

    payload: bytes
    error: str | None
    log_tail: bytes
    report: Report


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One process and its limits; an environment whose init has failed gets a second one."""

    child: ChildProcess
    group: ResourceGroup
    meter: MemoryMeter

    @property
    def pid(self) -> int | None:
        return None if self.child.exited.done() else self.child.pid

    def kill(self) -> None:
        self.group.kill()
        self.child.kill()

    async def clear(self) -> None:
        """Wait until the killed processes are gone, and remove the group."""
        deadline = time.monotonic() + REMOVE_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.child.exited), REMOVE_S)
        while not self.group.remove() and time.monotonic() < deadline:
            self.group.kill()
            await asyncio.sleep(0.01)


class Environment:
    """One environment of one function version: started once, then invoked one event at a time.

    It ends by `end`, or by itself when its process does; `on_end` is called in both cases, and
    `close` must follow.
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
        self._api = RuntimeApi(host.limits, self._freeze_if_idle)
        self._sandbox: Sandbox | None = None
        self._is_ready = False
        self._init_ms: float | None = None

    @property
    def pid(self) -> int | None:
        return self._sandbox.pid if self._sandbox is not None else None

    def describe(self) -> dict[str, Any]:
        """What `/_smlt/environments` shows; rss is anonymous memory in bytes."""
        group = self._sandbox.group if self._sandbox is not None else None
        return {
            "function": self.function.name,
            "version": self.function.version,
            "memory_mb": self.function.memory_mb,
            "pid": self.pid,
            "pids": group.pids() if group is not None else [],
            "state": self.state,
            "request_id": self.request_id,
            "rss": group.memory_bytes()[0] if group is not None else 0,
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
        self.request_id = invocation.request_id
        if self.state != "ended":
            self.state = "busy"
        first_event = len(self.stream)
        begun = time.monotonic()
        ending = await self._run(invocation, begun)
        duration_ms = (time.monotonic() - begun) * 1000
        if self._sandbox is not None:
            self._sandbox.meter.measure(self.pid)
            self._sandbox.child.drain()
        body = self._explain(ending, invocation.request_id)
        report = self._report(ending, invocation.request_id, duration_ms)
        self.stream.write(end_line(invocation.request_id))
        self.stream.write(report.line())
        tail = self.stream.tail(first_event, TAIL_BYTES)
        self._finish_invocation(ending)
        return Outcome(body, None if ending.kind == "response" else "Unhandled", tail, report)

    def end(self) -> None:
        """Kill every process of the environment and release what it holds. Idempotent."""
        if self.state == "ended":
            return
        self.state = "ended"
        if self._sandbox is not None:
            self._sandbox.kill()
        self._api.end_phase(KILLED)
        self._on_end(self)

    async def close(self) -> None:
        """After `end`: wait until the processes are gone, and remove their traces."""
        await self._clear_sandbox()
        await self._api.__aexit__()
        await asyncio.to_thread(rmtree, self._scratch, ignore_errors=True)
        self.stream.close()

    def check_memory(self) -> None:
        """Kill the processes when they use more than the function's memory."""
        if self._sandbox is None or self.state not in ("starting", "busy"):
            return
        if self._sandbox.meter.is_over(self.pid):
            self._api.end_phase(Ending("memory"))
            self._sandbox.kill()

    async def _run(self, invocation: Invocation, begun: float) -> Ending:
        """The invoke phase, with the second attempt at init where the first has failed."""
        function, ending = self.function, KILLED
        if not self._is_ready:
            await self._clear_sandbox()
            ending = await self._init(function.timeout_s, boost=False)
            if not self._is_ready:
                self._log_failed_init(ending, (time.monotonic() - begun) * 1000, "invoke")
        self.stream.write(start_line(invocation.request_id, function.version))
        if not self._is_ready or self._sandbox is None:
            return ending
        if self._init_ms is not None:
            self._sandbox.group.set_vcpus(vcpus(function.memory_mb))
        self._sandbox.meter.start_again(self.pid)
        left_s = function.timeout_s - (time.monotonic() - begun)
        phase = self._api.begin_phase()
        if self._sandbox.child.exited.done():
            return self._exit_ending(self._sandbox.child.exited.result())
        # Thawed only now: time in the freezer is nobody's.
        self._sandbox.group.freeze(False)
        deadline_ms = int((self._host.now() + left_s) * 1000)
        self._api.offer(invocation, arn=function.arn, deadline_ms=deadline_ms)
        return await self._end_of(phase, left_s)

    async def _init(self, limit_s: float, *, boost: bool) -> Ending:
        if self.state == "ended":
            return KILLED
        phase = self._api.begin_phase()
        self._sandbox = self._launch(None if boost else vcpus(self.function.memory_mb))
        ending = await self._end_of(phase, limit_s)
        self._is_ready = ending.kind == "ready"
        self._sandbox.child.drain()
        if not self._is_ready:
            self._sandbox.kill()
        return ending

    async def _end_of(self, phase: asyncio.Future[Ending], limit_s: float) -> Ending:
        try:
            return await asyncio.wait_for(asyncio.shield(phase), limit_s)
        except TimeoutError:
            self._api.end_phase(Ending("timeout"))
            if self._sandbox is not None:
                self._sandbox.kill()
            return phase.result()

    def _launch(self, vcpu_limit: float | None) -> Sandbox:
        function, host = self.function, self._host
        isolation = host.isolation
        self._scratch.mkdir(parents=True, exist_ok=True)
        group = isolation.create_group(
            f"{self._id}-{uuid.uuid4().hex[:4]}", function.memory_mb, function.ephemeral_mb
        )
        group.set_vcpus(vcpu_limit)
        variables = host.variables(
            function,
            log_stream=self.stream.name,
            runtime_api=f"127.0.0.1:{self._api.port}",
            scratch=self._scratch,
        )
        spec = LaunchSpec(
            argv=[sys.executable, "-m", "awslambdaric", function.handler],
            env=variables,
            cwd=str(function.code.root),
            cgroup_procs=group.procs_files,
            namespace=isolation.namespace,
            tmp_mb=function.ephemeral_mb,
            visible=host.visible,
            open_files=host.limits.open_files,
            oom_score_adj=FUNCTION_OOM_SCORE,
        )
        child = ChildProcess(spec, on_line=self.stream.write, on_exit=self._on_exit)
        group.lead_by(child.pid)
        limit_mb = function.memory_mb if isolation.limits_memory else sys.maxsize
        has_tmpfs = isolation.namespace is not None
        return Sandbox(child, group, MemoryMeter(group, limit_mb, has_tmpfs=has_tmpfs))

    def _on_exit(self, returncode: int) -> None:
        self._api.end_phase(self._exit_ending(returncode))
        if self.state == "idle":
            self.end()

    def _exit_ending(self, returncode: int) -> Ending:
        was_killed = returncode == -signal.SIGKILL and self._sandbox is not None
        if was_killed and self._sandbox is not None and self._sandbox.group.oom_kills():
            return Ending("memory")
        return Ending("exit", returncode=returncode)

    async def _clear_sandbox(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.clear()
            self._sandbox = None

    def _finish_invocation(self, ending: Ending) -> None:
        self._init_ms, self.request_id = None, None
        is_alive = self.state != "ended" and self._is_ready and self.pid is not None
        # The runtime client ends itself when an answer of its is refused for its size.
        if is_alive and ending.is_answer and ending.error_type != TOO_LARGE_RESPONSE:
            self.state, self.idle_since = "idle", time.monotonic()
            self._freeze_if_idle()
        else:
            self.end()

    def _freeze_if_idle(self) -> None:
        """Stop the processes once the answer is out and the next event is asked for, as on Lambda.

        What a handler leaves running (a thread, a child) goes on with the next invocation only.
        """
        if self.state == "idle" and self._api.is_polled and self._sandbox is not None:
            self._sandbox.group.freeze(True)

    def _explain(self, ending: Ending, request_id: str) -> bytes:
        """The answer's body; writes the platform's own line about it into the log."""
        if ending.is_answer:
            return ending.body
        if ending.kind == "timeout":
            what = f"Task timed out after {self.function.timeout_s:.2f} seconds"
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._host.now()))
            self.stream.write(f"{moment}Z {request_id} {what}")
            return error_body("Sandbox.Timedout", f"RequestId: {request_id} Error: {what}")
        message = f"RequestId: {request_id} Error: {ending.exit_text()}"
        kind = ending.error_type or ""
        self.stream.write(f"{message}\n{kind}")
        if ending.kind == "memory":
            self.stream.write(
                f"The function was out of memory (OOM): it used {self._peak_mb()} MB "
                f"of {self.function.memory_mb} MB and was killed."
            )
        return error_body(kind, message)

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
            error_type=ending.error_type if status == "error" else None,
        )

    def _peak_mb(self) -> int:
        return math.ceil(self._sandbox.meter.peak_bytes / MB) if self._sandbox is not None else 0

    def _log_failed_init(self, ending: Ending, init_ms: float, phase: str) -> None:
        status = "timeout" if ending.kind == "timeout" else "error"
        kind = ending.error_type if status == "error" else None
        self.stream.write(init_report_line(init_ms, phase=phase, status=status, error_type=kind))
