"""Bugs planted on purpose: the simulation is worth what it finds of them.

Each takes a ``pytest.MonkeyPatch`` and leaves out one rule of the protocol.
"""

from __future__ import annotations

import contextlib
import itertools

import numpy as np

from smlt.aggregation.step import AllReduce
from smlt.control.job import Job
from smlt.errors import StoreLostError
from smlt.io.checkpoint import CheckpointWriter
from smlt.io.checkpoint_part import nbytes_of, part_header
from smlt.io.frame import ShardHeader
from smlt.io.manifest import PartInfo
from smlt.io.state_digest import leaf_digests
from smlt.io.valkey import ValkeyStore
from smlt.worker.ending import Ending
from tests.simulation.object_store import SimulatedObjects
from tests.simulation.world import play


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

    async def lossy_put(self, arrival, stream, encode):
        span = self._plan.span(arrival.shard)
        exact = self._flat[span].copy()
        if arrival.is_mean:
            self._flat[span] = np.round(exact * 2) / 2
        await put(self, arrival, stream, encode)
        if arrival.is_mean:
            self._flat[span] = exact

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


def claim_that_everybody_gets(patch):
    """A second delivery of an event takes part as well."""
    first = ValkeyStore.first

    async def always_first(self, key, value, **options):
        stands = await first(self, key, value, **options)
        return value if ":claim:" in key else stands

    patch.setattr(ValkeyStore, "first", always_first)


def marker_that_nobody_checks(patch):
    """A store that was emptied is written to as if nothing had been."""

    put, announce, first = ValkeyStore.put, ValkeyStore.announce, ValkeyStore.first
    values = ValkeyStore.values

    async def unguarded_values(self, keys):
        read = await values(self, keys)
        return [
            b"1" if value is None and key.endswith(":marker") else value
            for key, value in zip(keys, read, strict=True)
        ]

    async def unguarded_first(self, key, value, **options):
        try:
            return await first(self, key, value, **options)
        except StoreLostError:
            return value

    async def unchecked(self, guard):
        return None

    patch.setattr(ValkeyStore, "put", _unguarded(put))
    patch.setattr(ValkeyStore, "announce", _unguarded(announce))
    patch.setattr(ValkeyStore, "first", unguarded_first)
    patch.setattr(ValkeyStore, "values", unguarded_values)
    patch.setattr(ValkeyStore, "check", unchecked)


def _unguarded(write):
    async def quietly(self, *args, **options):
        with contextlib.suppress(StoreLostError):
            await write(self, *args, **options)

    return quietly


def lead_that_is_taken_at_once(patch):
    """A client takes over a job without looking whether the one before still lives."""

    async def hurried(self, client, *, clock, take_over=Job.take_over, **options):
        hours = itertools.count()
        await take_over(self, client, clock=lambda: next(hours) * 3600.0, **options)

    patch.setattr(Job, "take_over", hurried)


def fence_that_is_open(patch):
    """A client writes the job's state whoever has changed it since."""
    put = SimulatedObjects.put

    async def blind_put(self, key, data, *, if_match="", **conditions):
        return await put(self, key, data, **conditions)

    patch.setattr(SimulatedObjects, "put", blind_put)


def leaving_without_a_manifest(patch):
    """A rank leaves when it has written its own part, and trusts that somebody commits."""

    async def hasty_save(self, writer, step, info):
        await writer.write_part(self._rank)
        if self._rank == 0:
            await writer.commit(parent=self._parent.position, info=info)
        return self._parent

    patch.setattr(Ending, "save", hasty_save)


PLANTED = [
    forgotten_notice,
    owner_that_trusts_its_own_mean,
    discard_one_step_early,
    manifest_before_its_parts,
    flag_read_from_one_shard_only,
    claim_that_everybody_gets,
    marker_that_nobody_checks,
    lead_that_is_taken_at_once,
    fence_that_is_open,
    leaving_without_a_manifest,
]


def find(plant, patch, seeds):
    """Return the first seed in which a planted bug shows, with what it violates; None if none."""
    plant(patch)
    for seed in seeds:
        found = play(seed).violations
        if found:
            return seed, found[0]
    return None
