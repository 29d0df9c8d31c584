"""What one rank does in a step, by smlt and by its peers.

smlt      smlt.aggregation: shards, notices, overlap
bf16      the same, with --wire-dtype bf16
paper     the scheme of the SMLT paper, by redis-py: pickle, SET and GET one after the other,
          np.mean of a stack, a barrier between the phases
lambdaml  all to one through one key (LambdaML's AllReduce): a leader fetches every gradient whole
gloo      torch.distributed's all_reduce on the same ranks, which may talk to each other
relay     the limit: the bytes of smlt's step through a third process on raw sockets
store     the same bytes, in the same shards, through the same server, and nothing else
floor     the round trips of smlt's step of one shard, on raw sockets to the same server
"""

import asyncio
import os
import pickle
from functools import partial

import numpy as np
import redis

from benchmarks.step_floor import Floor, Store
from benchmarks.step_relay import LIMIT_S, PIECE, connected, exchange, relayed
from smlt.aggregation.collective import Collective
from smlt.aggregation.notices import Notices
from smlt.aggregation.shard_plan import plan_shards
from smlt.aggregation.transfer import Membership, shard_threads
from smlt.aggregation.wire import Wire
from smlt.io.frame import Meta
from smlt.io.keys import GenerationKeys
from smlt.io.link_rate import LinkRate
from smlt.io.resp_links import connect
from smlt.io.server_address import ServerAddress
from smlt.io.valkey import ValkeyStore


class Smlt:
    """A rank of a generation; keeps its event loop between steps, as a worker does."""

    def __init__(self, options, rank, flat, wire="fp32", job="") -> None:
        self._flat = flat
        self._step = 0
        self._trace = options.trace
        self._plan = plan_shards(
            flat.size,
            world_size=options.ranks,
            shard_bytes=int(options.shard_mb * (1 << 20)),
            aggregators=options.aggregators,
        )
        self._wire = Wire.of(wire, flat.size, options.ranks)
        self._link = LinkRate(options.link_mbps) if options.link_mbps else None
        # Not asyncio.Runner, which installs and removes a signal handler for each call.
        self._threads = shard_threads()
        self._loop = asyncio.new_event_loop()
        self._run = self._loop.run_until_complete
        self._run(self._open(options, rank, job or wire))

    async def _open(self, options, rank, job) -> None:
        self._store = store = ValkeyStore(
            ServerAddress.parse(options.url),
            time_limit_s=LIMIT_S,
            dial=partial(connect, link=self._link),
            threads=self._link is None,
        )
        keys = GenerationKeys(f"bench-{job}", 1)
        await store.mark(keys.marker, ttl_s=3600)
        members = Membership(
            store=store,
            keys=keys,
            rank=rank,
            world_size=options.ranks,
            ttl_s=3600,
            limit_s=LIMIT_S,
            offload=self._threads.run,
        )
        notices = Notices(store, keys, rank, lambda _: None)
        self._reading = asyncio.create_task(notices.run())
        self._collective = Collective(members, notices)
        self._passed()

    def _begin(self):
        reduction = self._collective.begin(
            self._step,
            self._plan,
            self._flat,
            weight=1.0,
            flags=0,
            meta=lambda _: Meta(),
            wire=self._wire,
            trace=self._trace,
        )
        self._step += 1
        return reduction

    async def _all_reduce(self):
        reduction = self._begin()
        for shard in range(self._plan.shards):
            reduction.ready(shard)
        await reduction.run()
        reduction.phases.stop()
        return reduction.phases

    def step(self):
        """Return what the step has to tell: phases, spans, bytes up and down."""
        before = self._passed()
        phases = self._run(self._all_reduce())
        passed = [after - then for after, then in zip(self._passed(), before, strict=True)]
        return {"phases": phases.seconds, "spans": phases.spans, "passed": passed}

    def _passed(self):
        if self._link is None:
            return [0, 0]
        return [self._link.up.passed, self._link.down.passed]

    async def _close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._store.close()

    def close(self) -> None:
        self._run(self._close())
        self._loop.close()
        self._threads.close()


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


class LambdaMl:
    """Everybody uploads a whole gradient, the leader averages them, everybody downloads that."""

    def __init__(self, options, rank, flat) -> None:
        self._redis = redis.Redis.from_url(options.url, protocol=2)
        self._rank, self._flat, self._ranks = rank, flat, options.ranks
        self._barrier = options.barrier

    def step(self) -> None:
        self._redis.set(f"lambdaml:{self._rank}", self._flat.tobytes())
        self._barrier.wait(LIMIT_S)
        if self._rank == 0:
            total = np.zeros_like(self._flat)
            for rank in range(self._ranks):
                total += np.frombuffer(self._redis.get(f"lambdaml:{rank}"), np.float32)
            self._redis.set("lambdaml:mean", (total / self._ranks).tobytes())
        self._barrier.wait(LIMIT_S)
        self._flat[:] = np.frombuffer(self._redis.get("lambdaml:mean"), np.float32)


class Gloo:
    def __init__(self, options, rank, flat) -> None:
        import torch  # noqa: PLC0415
        import torch.distributed  # noqa: PLC0415

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
        self._socket = connected(options)
        self._bytes = relayed(options.ranks, flat.nbytes)
        self._source = memoryview(flat).cast("B")
        self._target = memoryview(bytearray(PIECE))

    def step(self) -> None:
        exchange(self._socket, self._source, self._target, *self._bytes)


SCHEMES = {
    "smlt": Smlt,
    "bf16": partial(Smlt, wire="bf16"),
    "paper": Paper,
    "lambdaml": LambdaMl,
    "gloo": Gloo,
    "relay": Relay,
    "store": Store,
    "floor": Floor,
}
