"""A model of the steps of a generation: n ranks average two shards through two servers.

They agree on when to stop, which a user may ask for at any moment, or the generation is aborted.
What a mean is worth is "exact", or "rounded" as it comes off a lossy wire. Shard j, the frames of
its parts and mean and their notices, lies on server j; the control stream on server 0; the marker
on both. Once or twice there is trouble: a server is emptied, its marker expires, it evicts a frame;
a rank dies; somebody calls for an abort, rightly or not.
"""

from __future__ import annotations

from typing import NamedTuple

SHARDS = SERVERS = 2
STEPS = 2
TROUBLES = 1
CONTROL = 0
ONE_FLAG = "a flag decided for each shard, and read from one"


class Rank(NamedTuple):
    step: int = 0
    flags: tuple = ()
    """Its flag for each shard of this step, once begun."""
    put: frozenset = frozenset()
    means: tuple = (None,) * SHARDS
    """(value, flag) of each mean that is in."""
    end: str = ""
    """left, aborted or dead; empty while it is at work."""
    history: tuple = ()


class State(NamedTuple):
    ranks: tuple
    frames: frozenset = frozenset()
    notices: frozenset = frozenset()
    stop: bool = False
    abort: bool = False
    """Somebody has called for one, and the control stream says so."""
    lost: tuple = (None,) * SERVERS
    """Of each server whose marker is gone: the step that was under way then."""
    troubles: int = 0


def start(n):
    return State((Rank(),) * n)


def successors(state, mutant=""):
    if not state.stop:
        yield "trouble: a user asks for a stop", state._replace(stop=True)
    if state.troubles < TROUBLES:
        yield from _troubles(state._replace(troubles=state.troubles + 1))
    for i, rank in enumerate(state.ranks):
        if not rank.end and rank.step < STEPS:
            yield from _acts(state, i, rank, mutant)


def _troubles(state):
    under_way = max(rank.step for rank in state.ranks)
    for server in range(SERVERS):
        if state.lost[server] is None:
            unmarked = state._replace(lost=_with(state.lost, server, under_way))
            yield f"trouble: the marker on server {server} expires", unmarked
            yield (
                f"trouble: server {server} is emptied",
                unmarked._replace(
                    frames=frozenset(frame for frame in state.frames if frame[2] != server),
                    notices=frozenset(notice for notice in state.notices if notice[2] != server),
                    abort=state.abort and server != CONTROL,
                ),
            )
    for frame in sorted(state.frames):
        yield f"trouble: {frame} is evicted", state._replace(frames=state.frames - {frame})
    for i, rank in enumerate(state.ranks):
        if not rank.end:
            yield f"trouble: rank {i} dies", _with_rank(state, i, rank._replace(end="dead"))
    if not state.abort and state.lost[CONTROL] is None:
        yield "trouble: a rank is suspected", state._replace(abort=True)


def _acts(state, i, rank, mutant):
    n, s = len(state.ranks), rank.step
    if mutant != "nobody listens to an abort" and state.abort:
        yield f"rank {i} hears of the abort", _with_rank(state, i, rank._replace(end="aborted"))
    if state.lost[CONTROL] is not None and mutant != "the marker is not checked":
        yield f"rank {i} finds the store lost", _aborting(state, i, rank)
    if not rank.flags:
        begun = rank._replace(flags=(state.stop,) * SHARDS)
        yield f"rank {i} begins step {s}", _with_rank(state, i, begun)
        return
    for j in range(SHARDS):
        owner = j % n
        if i != owner and j not in rank.put:
            yield from _put(state, i, rank, j, mutant)
        if i == owner and rank.means[j] is None:
            yield from _reduce(state, i, rank, j, mutant)
        announced = ("mean", s, j) in state.notices
        if i != owner and announced and j in rank.put and rank.means[j] is None:
            found = [frame for frame in state.frames if frame[:3] == ("mean", s, j)]
            if found:
                means = _with(rank.means, j, found[0][3:])
                fetched = _with_rank(state, i, rank._replace(means=means))
                yield f"rank {i} fetches mean {j} of step {s}", fetched
            else:
                yield f"rank {i} misses mean {j} of step {s}", _aborting(state, i, rank)
    if None not in rank.means:
        yield f"rank {i} applies step {s}", _with_rank(state, i, _applied(i, rank, mutant))
    elif state.troubles and mutant != "a wait without a limit":
        # How long is no matter of the model; without trouble nobody waits so long.
        yield f"rank {i} has waited too long", _aborting(state, i, rank)


def _applied(i, rank, mutant):
    flags = [flag for _, flag in rank.means]
    stop = flags[i % SHARDS] if mutant == ONE_FLAG else any(flags)
    values = tuple(value for value, _ in rank.means)
    return Rank(step=rank.step + 1, end="left" if stop else "", history=(*rank.history, values))


def _aborting(state, i, rank):
    """A rank calls for an abort where it can be heard, and stops at the state that it holds."""
    told = state._replace(abort=state.abort or state.lost[CONTROL] is None)
    return _with_rank(told, i, rank._replace(end="aborted"))


def _unmarked(state, server, mutant):
    return state.lost[server] is not None and mutant != "the marker is not checked"


def _put(state, i, rank, j, mutant):
    s = rank.step
    if _unmarked(state, j, mutant):
        yield f"rank {i} cannot put shard {j}", _aborting(state, i, rank)
        return
    # Decided once for a step, unless the mutant looks again for every shard.
    flag = state.stop if mutant == ONE_FLAG else rank.flags[j]
    frame, notice = ("part", s, j, i, flag), ("part", s, j, i)
    if mutant == "notice before its frame" and notice not in state.notices:
        yield f"rank {i} announces shard {j}", state._replace(notices=state.notices | {notice})
        return
    there = state._replace(frames=state.frames | {frame}, notices=state.notices | {notice})
    yield (
        f"rank {i} puts shard {j} of step {s}",
        _with_rank(there, i, rank._replace(put=rank.put | {j})),
    )


def _reduce(state, i, rank, j, mutant):
    s, n = rank.step, len(state.ranks)
    others = [k for k in range(n) if k != i]
    if not all(("part", s, j, k) in state.notices for k in others):
        return
    parts = [frame for frame in state.frames if frame[:3] == ("part", s, j)]
    if len(parts) < len(others):
        yield f"rank {i} misses a part of shard {j}", _aborting(state, i, rank)
        return
    if _unmarked(state, j, mutant):
        yield f"rank {i} cannot put mean {j}", _aborting(state, i, rank)
        return
    own = state.stop if mutant == ONE_FLAG else rank.flags[j]
    flag = own or any(part[4] for part in parts)
    value = "exact" if mutant == "owner trusts its own mean" else "rounded"
    means = _with(rank.means, j, (value, flag))
    if n == 1:
        yield f"rank {i} has mean {j}", _with_rank(state, i, rank._replace(means=means))
        return
    early = mutant == "discard a step early"
    stale = {("mean", s - 1), ("part", s if early else s - 1)}
    kept = {frame for frame in state.frames if frame[2] != j or frame[:2] not in stale}
    if not early:
        kept.add(("mean", s, j, "rounded", flag))
    put = state._replace(frames=frozenset(kept), notices=state.notices | {("mean", s, j)})
    yield f"rank {i} puts mean {j} of step {s}", _with_rank(put, i, rank._replace(means=means))


def wrong(state):
    """Agreement of means; all leave after one step, or the generation is aborted, with cause."""
    ranks = state.ranks
    for s in range(STEPS):
        if len({rank.history[s] for rank in ranks if len(rank.history) > s}) > 1:
            return f"the ranks applied different means in step {s}"
    left = {rank.step for rank in ranks if rank.end == "left"}
    if len(left) > 1:
        return f"the ranks left after different steps {sorted(left)}"
    if left and any(rank.step > max(left) for rank in ranks):
        return "a rank went on where others had left"
    if max(rank.step for rank in ranks) - min(rank.step for rank in ranks) > 1:
        return "two ranks hold states that are more than a step apart"
    if not state.troubles and any(rank.end == "aborted" for rank in ranks):
        return "a rank aborts without cause"
    lost = [step for step in state.lost if step is not None]
    if len(ranks) > 1 and lost and any(rank.step > min(lost) + 1 for rank in ranks):
        return "a step was taken in a generation that the store has lost"
    return ""


def is_final(state):
    """Progress: each rank comes to the last step, or to an end."""
    return all(rank.end or rank.step >= STEPS for rank in state.ranks)


def _with_rank(state, index, rank):
    return state._replace(ranks=_with(state.ranks, index, rank))


def _with(items, index, value):
    return (*items[:index], value, *items[index + 1 :])
