"""Bugs planted on purpose: the simulation is worth what it finds of them."""

import itertools
import logging

import numpy as np
import pytest

from smlt.aggregation.step import AllReduce
from smlt.io.checkpoint import CheckpointWriter
from smlt.io.checkpoint_part import nbytes_of, part_header
from smlt.io.frame import ShardHeader
from smlt.io.manifest import PartInfo
from smlt.io.state_digest import leaf_digests
from smlt.io.valkey import ValkeyStore
from tests.simulation.world import play

SEEDS = 1000
SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


def forgotten_notice(patch):
    """One frame in fifty is put without being announced."""
    put, numbers = ValkeyStore.put, itertools.count(1)

    async def silent_put(self, key, frame, *, stream, **options):
        aside = "" if next(numbers) % 50 else ":nowhere"
        await put(self, key, frame, stream=stream + aside, **options)

    patch.setattr(ValkeyStore, "put", silent_put)


def owner_that_trusts_its_own_mean(patch):
    """The wire loses bits, and the owner goes on with those that it had before."""
    put = AllReduce._put

    async def lossy_put(self, arrival, stream, span, header):
        wire = np.round(span * 2) / 2 if arrival.is_mean else span
        await put(self, arrival, stream, wire.astype(np.float32), header)

    patch.setattr(AllReduce, "_put", lossy_put)


def discard_one_step_early(patch):
    """Frames of this step are freed when its first shard is settled, not the next step's."""

    async def discard_fresh(self):
        await self._settled.wait()
        await self._transfer.members.store.discard(self.frames())

    patch.setattr(AllReduce, "_discard_stale", discard_fresh)


def manifest_before_its_parts(patch):
    """Whoever commits trusts that the others' parts will come."""

    async def none_missing(self):
        return []

    async def computed(self, part):
        leaves = self._layout.part(part, self._parts)
        digests = leaf_digests(self._tensors, leaves)
        header = part_header(leaves, digests, part, self._parts)
        return PartInfo(self._key(part), len(header) + nbytes_of(leaves), digests)

    patch.setattr(CheckpointWriter, "missing_parts", none_missing)
    patch.setattr(CheckpointWriter, "_part_info", computed)


def flag_read_from_one_shard_only(patch):
    """A rank puts its flags on the shard that it owns, and reads them from the one it has first."""
    header, settle = AllReduce._header, AllReduce._settle

    def some_flags(self, shard):
        whole = header(self, shard)
        mine = self._plan.owner(shard) == self._rank
        return whole if mine else ShardHeader(0, whole.weight, whole.meta)

    def first_flags(self, shard, header):
        before = self._result.flags if self._settled.is_set() else header.flags
        settle(self, shard, header)
        self._result.flags = before

    patch.setattr(AllReduce, "_header", some_flags)
    patch.setattr(AllReduce, "_settle", first_flags)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(forgotten_notice, marks=SLOW),
        owner_that_trusts_its_own_mean,
        discard_one_step_early,
        manifest_before_its_parts,
        pytest.param(flag_read_from_one_shard_only, marks=SLOW),
    ],
)
def test_planted_bug_is_found(plant, monkeypatch):
    monkeypatch.setattr(logging.getLogger("smlt"), "disabled", True)
    plant(monkeypatch)
    for seed in range(SEEDS):
        if play(seed).violations:
            return
    pytest.fail(f"{SEEDS} seeds did not find it")
