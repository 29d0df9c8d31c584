"""Tasks of which the first process to come to a certain phase waits there, once."""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from small import LAST_RANKS, wait_at
from steady import Steady

from smlt.worker import numerics


def is_first(gate):
    """Whether nobody has asked this before, in any process of the job."""
    try:
        os.close(os.open(Path(gate).with_name("once"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Waits(Steady):
    """Gives the weights of Steady; the gate is passed by all but the first that comes."""

    def wait_once(self):
        if is_first(self.gate):
            wait_at(Path(self.gate))

    def waits(self, rows):
        return False


class Imports(Waits):
    """Waits where the task is made: nothing of it has run."""

    def __init__(self, gate: str = "", wait_at: int = 0):
        super().__init__(gate, wait_at)
        self.wait_once()


class Dataset(Waits):
    def dataset(self, data, split):
        self.wait_once()
        return super().dataset(data, split)


class Loads(Waits):
    def initialize(self, seed, total_steps):
        super().initialize(seed, total_steps)
        self.wait_once()


class Applies(Waits):
    """Waits after the means are in, before the weights change."""

    def apply(self, mean, present):
        if self.steps == 8:
            self.wait_once()
        super().apply(mean, present)


class LastSaves(Waits):
    """The last rank waits where its state is collected for a checkpoint, at the end of the job."""

    waits_as_last = True

    def gradients(self, samples, into, ready):
        self.is_last = samples[-1][0] >= LAST_RANKS
        return super().gradients(samples, into, ready)

    def state(self):
        if self.steps == 24 and self.is_last == self.waits_as_last:
            self.wait_once()
        return super().state()


class FirstSaves(LastSaves):
    waits_as_last = False


class Checkpoints(Waits):
    """Waits where its state is copied for a checkpoint in the background."""

    def state(self):
        if 8 <= self.steps < 24:
            self.wait_once()
        return super().state()


class FirstShard(Waits):
    """The last rank waits when all but its last shard has been put."""

    def gradients(self, samples, into, ready):
        done = super().gradients(samples, into, ready)
        if self.steps + 1 == self.wait_at and samples[-1][0] >= LAST_RANKS:
            for name in into:
                ready(name)
            self.wait_once()
        return done


class LastDawdles(Steady):
    def waits(self, rows):
        return max(rows) >= LAST_RANKS


class Uneven(Steady):
    """Every twelfth step takes four times as long, on one rank only."""

    def __init__(self, pace: float = 0.05, second: float = 0.0):
        super().__init__(pace=pace)
        self.second = second

    def trouble(self, step, is_last_rank):
        if is_last_rank:
            time.sleep(self.second * (4 if step % 12 == 0 else 1))


class Hungry(Steady):
    """Takes 640 MB at step 8, on one rank only."""

    def trouble(self, step, is_last_rank):
        if step == 8 and is_last_rank:
            self.food = np.ones(80 << 20, np.uint8).repeat(8)


class WrongClock(Waits):
    """The first process that begins has a clock that is a minute ahead, or behind, by turns."""

    def initialize(self, seed, total_steps):
        super().initialize(seed, total_steps)
        if not is_first(self.gate):
            return
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() + self.off_s
        time.time_ns = lambda: now_ns() + self.off_s * 10**9
        print("this clock is wrong")

    @property
    def off_s(self):
        return 60 if self.steps % 2 else -60


class MixedFleet(Steady):
    """The second process that is asked for its arithmetic has another one than the first."""

    def initialize(self, seed, total_steps):
        super().initialize(seed, total_steps)
        numerics.of_this_host = self.of_this_host

    def of_this_host(self, honest=numerics.of_this_host):
        first, second = (Path(self.gate).with_name(name) for name in ("first", "second"))
        is_other = self.is_first_at(second) if not self.is_first_at(first) else False
        return honest() | ({"architecture": "another"} if is_other else {})

    @staticmethod
    def is_first_at(path):
        """Whether this process is the first that came to a file."""
        with suppress(FileExistsError):
            path.symlink_to(str(os.getpid()))
        return os.readlink(path) == str(os.getpid())


class FillsTmp(Steady):
    """At step 8, on one rank; with a gate given, no more than once."""

    def trouble(self, step, is_last_rank):
        if step == 8 and is_last_rank:
            if self.gate and not is_first(self.gate):
                return
            with tempfile.NamedTemporaryFile() as file:
                while True:
                    file.write(bytes(1 << 20))
