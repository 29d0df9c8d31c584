"""Links that cut, delay and corrupt at seeded moments, before a real server.

Whatever they do, a rank ends with the right means or with one clear error; never with a wrong mean,
and never not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl

import numpy as np
import pytest

from smlt.aggregation.background import EventLoopThread
from smlt.errors import SmltError
from tests.io.servers import Proxy, self_signed

WORLD_SIZE = 3
STEPS = 8
SIZES = (40_000, 700, 3)
LONGEST_DELAY_S = 0.03


class FaultyLink(Proxy):
    """A proxy with bad luck, drawn from a seed, once it is told to begin."""

    def __init__(self, target, seed, *, cuts=0.0, delays=0.0, corrupts=0.0, tls=None):
        """Take the probability of each fault in each piece of data, of 64 KB or less."""
        super().__init__(target, tls=tls)
        self.chances = cuts, delays, corrupts
        self.dice = random.Random(seed)
        self.begun = False
        self.faults = 0

    async def _pass(self, reader, writer, budget, *, reply):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                cut, delay, corrupt = (self.dice.random() < chance for chance in self.chances)
                if self.begun and (cut or delay or corrupt):
                    self.faults += 1
                    if delay:
                        await asyncio.sleep(self.dice.uniform(0, LONGEST_DELAY_S))
                    if corrupt:
                        data = bytearray(data)
                        data[self.dice.randrange(len(data))] ^= 1 << self.dice.randrange(8)
                    if cut:
                        writer.write(data[: self.dice.randrange(len(data))])
                        return
                writer.write(data)
                await writer.drain()


@contextlib.contextmanager
def running(link):
    with EventLoopThread("link") as thread:
        thread.call(link.__aenter__())
        try:
            yield link
        finally:
            thread.call(link.__aexit__())


def gradients(rank, step):
    rng = np.random.default_rng([rank, step])
    wide = rng.standard_normal(50)
    return {
        "wide": wide,
        **{str(size): rng.standard_normal(size).astype(np.float32) for size in SIZES},
    }


def assert_mean(grads, step):
    for name, values in grads.items():
        every = [gradients(rank, step)[name].astype(np.float64) for rank in range(WORLD_SIZE)]
        np.testing.assert_allclose(values, np.mean(every, axis=0), rtol=1e-5, atol=1e-6)


def train_through(link):
    def act(aggregator, rank):
        aggregator.barrier()
        link.begun = True
        for step in range(STEPS):
            grads = gradients(rank, step)
            aggregator.allreduce(grads)
            assert_mean(grads, step)
        return "right"

    return act


def act_through(ranks, link, url, **options):
    with running(link):
        options = {"shard_mb": 0.02, "time_limit_s": 15, "limit_s": 120} | options
        return ranks.run(WORLD_SIZE, train_through(link), url(link), **options)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 9))]
)
def test_cuts_and_delays_change_nothing(ranks, valkey, seed):
    link = FaultyLink(valkey.path, seed, cuts=0.02, delays=0.1)
    results = act_through(ranks, link, lambda link: link.url)
    assert results == ["right"] * WORLD_SIZE
    assert link.faults > 10


def assert_right_or_clear(results):
    """Every rank has the right means, or says in a sentence what is wrong."""
    for result in results:
        if result == "right":
            continue
        assert isinstance(result, SmltError), repr(result)
        assert "\n" not in str(result)
        assert len(str(result)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_corrupt_bytes_give_the_right_means_or_a_clear_error(ranks, valkey, seed):
    corrupts = 0.01 if seed % 2 else 0.002
    link = FaultyLink(valkey.path, seed, cuts=0.005, delays=0.02, corrupts=corrupts)
    results = act_through(ranks, link, lambda link: link.url, lease_s=5.0)
    assert_right_or_clear(results)
    # The server has come to no harm, and the name is free.
    assert ranks.values(2, lambda aggregator, rank: aggregator.rank, valkey.url) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_tls_notices_corrupt_bytes_and_goes_on(ranks, valkey, tmp_path, seed):
    """Of TLS's records, not of what is in them: the connection ends, and another one is made."""
    certificate = self_signed(tmp_path / "certificate.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    tls = Proxy(valkey.path, tls=context)
    with EventLoopThread("tls") as thread:
        thread.call(tls.__aenter__())
        try:
            # The faulty link is between client and TLS: what it changes is encrypted.
            link = FaultyLink(tls.port, seed, cuts=0.005, corrupts=0.01)
            url = f"?ssl_ca_certs={certificate}"
            results = act_through(
                ranks, link, lambda link: f"rediss://localhost:{link.port}/0{url}", lease_s=5.0
            )
        finally:
            thread.call(tls.__aexit__())
    assert_right_or_clear(results)
