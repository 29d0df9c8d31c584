"""A model of endings and of what the next generation starts from, over n ranks.

In generation 1 the ranks stand at step 1 or 2, no two further apart, after an abort; some may have
a periodic checkpoint of step 1 under way. They save, commit and leave; they crash; the parameter
store may lose its marker (a restart, eviction, expiry, one of several servers) and then forgets
who stands where. The scheduler draws generation 2 when all have left or are lost, or its limit for
saving has passed, though ranks may live on as zombies. State 0 is committed before it all.

``cut`` is into how many parts a state was cut: another cut gives other bytes to the same keys.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

CRASHES = 2


class Rank(NamedTuple):
    step: int
    status: str = "saving"
    """saving, left or dead."""
    periodic: bool = False
    """A periodic save of step 1, from a copy, is under way."""
    lost: bool = False
    """The scheduler has given it up, rightly or not."""


class State(NamedTuple):
    ranks: tuple
    parts: frozenset = frozenset()
    """(step, cut, part) of generation 1 that are in the object store, one for a step and a part."""
    manifests: frozenset = frozenset()
    """(step, cut) of those committed, one for a step."""
    store: bool = True
    parent: int | None = None
    """The step that generation 2 is frozen to; None before it is drawn."""
    read: int | None = None
    """The step that generation 2 has loaded."""
    crashes: int = CRASHES
    hurried: bool = False
    """The limit for saving had passed when generation 2 was drawn."""
    early: bool = False
    """A manifest has been put before its parts were there."""


def starts(n):
    """Where the ranks may stand when the abort comes; the store may be there or not."""
    for steps in product((1, 2), repeat=n):
        for periodic, store in product((False, True), repeat=2):
            yield State(tuple(Rank(step, periodic=periodic) for step in steps), store=store)


def successors(state, mutant=""):
    n = len(state.ranks)
    if state.store:
        yield "trouble: the parameter store loses everything", state._replace(store=False)
    for i, rank in enumerate(state.ranks):
        if rank.status != "saving":
            continue

        def changed(_i=i, _rank=rank, **fields):
            return _with_rank(state, _i, _rank._replace(**fields))

        if state.crashes:
            yield (
                f"trouble: rank {i} dies",
                changed(status="dead")._replace(crashes=state.crashes - 1),
            )
        if not rank.lost:
            yield f"trouble: rank {i} is suspected", changed(lost=True)
        held = [rank.step, *([1] if rank.periodic else [])]
        for step in held:
            yield from _save(state, i, rank, step, n, mutant)
        newest = _newest(state)
        superseded = state.parent is not None
        may_leave = newest >= rank.step or superseded or mutant == "leave without a manifest"
        if may_leave and not _waits_for_higher(state, rank, mutant):
            yield f"rank {i} leaves", changed(status="left")
    yield from _draw(state, mutant)


def _save(state, i, rank, step, n, mutant):
    alive = [k for k, other in enumerate(state.ranks) if other.status == "saving"]
    cut = len(alive) if mutant == "parts cut by who is left" else n
    mine = {(step, cut, i if cut == n else alive.index(i))}
    holders = [k for k in alive if state.ranks[k].step == step]
    # Whoever does not know any more who lives writes them all, after a while.
    if holders and (holders[0] == i or not state.store):
        mine |= {(step, cut, part) for part in range(cut)}
    for part in sorted(mine - state.parts):
        there = {p for p in state.parts if (p[0], p[2]) != (part[0], part[2])}
        yield f"rank {i} writes {part}", state._replace(parts=frozenset(there | {part}))
    wanted = {(step, cut, part) for part in range(cut)}
    whole = wanted <= state.parts
    if step not in {at for at, _ in state.manifests} and (
        whole or mutant == "manifest before its parts"
    ):
        yield (
            f"rank {i} commits step {step}",
            state._replace(
                manifests=state.manifests | {(step, cut)}, early=state.early or not whole
            ),
        )


def _waits_for_higher(state, rank, mutant):
    higher = [other for other in state.ranks if other.step > rank.step]
    return mutant == "wait for a higher step" and bool(higher) and _newest(state) < 2


def _newest(state):
    return max((step for step, _ in state.manifests), default=0)


def _draw(state, mutant):
    gone = all(rank.status != "saving" or rank.lost for rank in state.ranks)
    newest = _newest(state)
    if state.parent is None:
        if gone or mutant == "draw before all have left":
            # One who was only suspected may live: then the limit for saving decides.
            hurried = any(r.status == "saving" for r in state.ranks)
            hurried = hurried and mutant != "draw before all have left"
            yield (
                f"the next generation is drawn from {newest}",
                state._replace(parent=newest, hurried=hurried),
            )
    elif state.read is None:
        read = newest if mutant == "read what is newest" else state.parent
        yield f"a rank of it loads {read}", state._replace(read=read)


def wrong(state):
    """A committed manifest is whole; a superseded generation changes nothing; bounded loss."""
    if state.early:
        return "a manifest was committed before its parts"
    if state.read is not None and state.read != state.parent:
        return "a superseded generation has changed what the next one reads"
    for step, cut in state.manifests:
        if not {(step, cut, part) for part in range(cut)} <= state.parts:
            return "a part of a committed state was overwritten with other bytes"
    if state.parent is not None and not state.hurried:
        survivors = [r.step for r in state.ranks if r.status == "left" and not r.lost]
        waiting = [r.step for r in state.ranks if r.status == "saving" and not r.lost]
        if state.read is None and waiting:
            return "the next generation is drawn while one that nobody suspects still saves"
        if survivors and state.parent < max(survivors):
            return f"a rank left in peace at step {max(survivors)}, and that state is lost"
    return ""


def is_final(state):
    """Progress: the next generation has a state to start from, and nobody of the last is left."""
    return state.read is not None and all(rank.status != "saving" for rank in state.ranks)


def _with_rank(state, index, rank):
    return state._replace(ranks=(*state.ranks[:index], rank, *state.ranks[index + 1 :]))
