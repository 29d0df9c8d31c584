"""A model of steps: n ranks average two shards through a store, and agree on when to stop.

A state is (ranks, store). A rank is (step, flags it put by shard, shards put, means it has, left,
values applied); the store is a set of frames and notices. One user's stop may come at any moment.
What a mean is worth is "exact", or "rounded" as it comes off a lossy wire.
"""

from __future__ import annotations

from typing import NamedTuple

SHARDS = 2
STEPS = 2
ONE_FLAG = "a flag decided for each shard, and read from one"


class Rank(NamedTuple):
    step: int = 0
    flags: tuple = ()
    """Its flag for each shard of this step, once begun."""
    put: frozenset = frozenset()
    means: tuple = (None,) * SHARDS
    """(value, flag) of each mean that is in."""
    left: int = -1
    """The step after which it left."""
    history: tuple = ()
    gone: bool = False
    """It looked for a frame that was announced, and did not find it."""


class State(NamedTuple):
    ranks: tuple
    frames: frozenset = frozenset()
    notices: frozenset = frozenset()
    stop: bool = False


def start(n):
    return State((Rank(),) * n)


def successors(state, mutant=""):
    n = len(state.ranks)
    if not state.stop:
        yield "trouble: a user asks for a stop", state._replace(stop=True)
    for i, rank in enumerate(state.ranks):
        if rank.left >= 0 or rank.gone or rank.step >= STEPS:
            continue

        def changed(_i=i, _rank=rank, frames=state.frames, notices=state.notices, **fields):
            ranks = list(state.ranks)
            ranks[_i] = _rank._replace(**fields)
            return state._replace(ranks=tuple(ranks), frames=frames, notices=notices)

        s = rank.step
        if not rank.flags:
            yield f"rank {i} begins step {s}", changed(flags=(state.stop,) * SHARDS)
            continue
        for j in range(SHARDS):
            owner = j % n
            if i != owner and j not in rank.put:
                yield from _put(state, i, rank, j, changed, mutant)
            if i == owner and rank.means[j] is None:
                yield from _reduce(state, i, rank, j, changed, mutant)
            announced = ("mean", s, j) in state.notices
            if i != owner and announced and j in rank.put and rank.means[j] is None:
                found = [f for f in state.frames if f[:3] == ("mean", s, j)]
                if not found:
                    yield f"rank {i} misses mean {j} of step {s}", changed(gone=True)
                else:
                    means = _with(rank.means, j, found[0][3:])
                    yield f"rank {i} fetches mean {j} of step {s}", changed(means=means)
        if None not in rank.means:
            flags = [flag for _, flag in rank.means]
            stop = flags[i % SHARDS] if mutant == ONE_FLAG else any(flags)
            values = tuple(value for value, _ in rank.means)
            yield f"rank {i} applies step {s}", changed(
                step=s + 1, flags=(), put=frozenset(), means=(None,) * SHARDS,
                left=s if stop else -1, history=(*rank.history, values),
            )  # fmt: skip


def _put(state, i, rank, j, changed, mutant):
    s = rank.step
    # Decided once for a step, unless the mutant looks again for every shard.
    flag = state.stop if mutant == ONE_FLAG else rank.flags[j]
    frame, notice = ("part", s, j, i, flag), ("part", s, j, i)
    if mutant == "notice before its frame" and notice not in state.notices:
        yield f"rank {i} announces shard {j}", changed(notices=state.notices | {notice})
        return
    yield (
        f"rank {i} puts shard {j} of step {s}",
        changed(
            put=rank.put | {j}, frames=state.frames | {frame}, notices=state.notices | {notice}
        ),
    )


def _reduce(state, i, rank, j, changed, mutant):
    s, n = rank.step, len(state.ranks)
    others = [k for k in range(n) if k != i]
    if not all(("part", s, j, k) in state.notices for k in others):
        return
    parts = [f for f in state.frames if f[:3] == ("part", s, j)]
    if len(parts) < len(others):
        yield f"rank {i} misses a part of shard {j}", changed(gone=True)
        return
    own = state.stop if mutant == ONE_FLAG else rank.flags[j]
    flag = own or any(part[4] for part in parts)
    value = "exact" if mutant == "owner trusts its own mean" else "rounded"
    age = 0 if mutant == "discard a step early" else 1
    kept = frozenset(
        f for f in state.frames if not (f[2] == j and f[1] == s - 1 and f[0] == "mean")
        and not (f[2] == j and f[1] == s - age and f[0] == "part")
    )  # fmt: skip
    frames = kept | {("mean", s, j, "rounded", flag)}
    if mutant == "discard a step early":
        frames = kept
    yield (
        f"rank {i} puts mean {j} of step {s}",
        changed(
            means=_with(rank.means, j, (value, flag)),
            frames=frames,
            notices=state.notices | {("mean", s, j)},
        ),
    )


def wrong(state):
    """Agreement of means; all ranks leave after one step; what is announced is there."""
    for rank in state.ranks:
        if rank.gone:
            return "a frame that was announced is gone"
    for s in range(STEPS):
        if len({rank.history[s] for rank in state.ranks if len(rank.history) > s}) > 1:
            return f"the ranks applied different means in step {s}"
    left = {rank.left for rank in state.ranks if rank.left >= 0}
    if len(left) > 1:
        return f"the ranks left after different steps {sorted(left)}"
    if left and any(rank.step > max(left) + 1 for rank in state.ranks):
        return "a rank went on where others had left"
    return ""


def is_final(state):
    """Progress: a run ends with all ranks gone together, or at the last step."""
    return all(rank.left >= 0 or rank.step >= STEPS for rank in state.ranks)


def _with(items, index, value):
    return (*items[:index], value, *items[index + 1 :])
