"""A model of how a generation begins, with two clients: drawing, marker, events, claims, roster.

Client A draws generation 1, marks the store, invokes the ranks and fixes the roster; it may stall
before any of it. Client B may take the job over at any moment, as if A had been silent for long: it
aborts what A began and draws the next generation; A may try that as well. An event may be delivered
twice, each time whenever it likes; the store may be emptied. Ranks come and go as they please.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

GENERATIONS = 2
UNLOOKED_CLAIM = "claims do not look for the marker"
UNLOOKED_ROSTER = "the roster does not look for the marker"
CLIENTS = {"A": 1, "B": 2}
"""By name: the fencing token that the client holds while it leads."""


class Client(NamedTuple):
    generation: int = 0
    """The one that it has drawn last; 0 before."""
    does: str = "draws"
    """draws, marks, invokes, or is done."""
    invoked: frozenset = frozenset()


class State(NamedTuple):
    job: tuple = (0, 1)
    """The generation that was drawn last, and the token that counts."""
    drawn: frozenset = frozenset()
    """(generation, client) of every drawing that went through."""
    clients: tuple = (Client(), None)
    """A and B; None while B is not there."""
    store: frozenset = frozenset()
    """("marker", g), ("claim", g, rank, copy), ("roster", g, ranks) and ("abort", g)."""
    events: frozenset = frozenset()
    """(generation, rank, token, copy) that have not arrived."""
    invocations: frozenset = frozenset()
    """(event, what it does): began, claimed, takes part, or took part and has ended."""
    emptied: bool = False


def successors(state, n, exact, mutant=""):
    if not state.emptied and state.store:
        yield "trouble: the store is emptied", state._replace(store=frozenset(), emptied=True)
    if state.clients[1] is None and state.job[0]:
        taken = state._replace(
            job=(state.job[0], CLIENTS["B"]), clients=(state.clients[0], Client())
        )
        aborted = _put(taken, ("abort", state.job[0]), state.job[0])
        yield "trouble: B takes over", aborted or taken
    for index, name in enumerate(CLIENTS):
        if state.clients[index] is not None:
            yield from _client_acts(state, index, name, n, exact, mutant)
    for event in sorted(state.events):
        yield from _delivered(state, event)
    for event, does in sorted(state.invocations):
        yield from _rank_acts(state, event, does, mutant)


def _client_acts(state, index, name, n, exact, mutant):
    client, token = state.clients[index], CLIENTS[name]

    def now(was=state, **fields):
        clients = list(was.clients)
        clients[index] = client._replace(**fields)
        return was._replace(clients=tuple(clients))

    g = client.generation
    if client.does == "draws":
        following = state.job[0] + 1 if mutant != "the job's state is written blindly" else g + 1
        stands = state.job[1] == token or mutant == "the job's state is written blindly"
        if not stands or following > GENERATIONS:
            yield f"{name} is told that it does not lead", now(does="done")
            return
        drawn = state._replace(
            job=(following, max(token, state.job[1])), drawn=state.drawn | {(following, name)}
        )
        yield (
            f"{name} draws {following}",
            now(drawn, generation=following, does="marks", invoked=frozenset()),
        )
    elif client.does == "marks":
        yield (
            f"{name} marks",
            now(state._replace(store=state.store | {("marker", g)}), does="invokes"),
        )
    elif client.does == "invokes":
        for rank in set(range(n)) - client.invoked:
            copies = {(g, rank, token, copy) for copy in (0, 1)}
            sent = state._replace(events=state.events | copies)
            yield f"{name} invokes {rank}", now(sent, invoked=client.invoked | {rank})
        yield from _fixes(state, name, g, n, exact, now, mutant)


def _fixes(state, name, g, n, exact, now, mutant):
    claimed = sorted(entry[2] for entry in state.store if entry[:2] == ("claim", g))
    # It has read the claims a while ago, and the limit for starts may have passed meanwhile.
    for size in range(1, len(claimed) + 1):
        for ranks in combinations(claimed, size):
            cut = ranks[: 1 << (size.bit_length() - 1)] if exact else ranks
            if mutant == "an exact roster of any number":
                cut = ranks
            fixed = _put(state, ("roster", g, cut), g, mutant)
            if fixed is not None and 2 * size >= n:
                yield f"{name} fixes the roster {cut}", now(fixed, does="draws")
    yield f"{name} gives the start up", now(does="draws")


def _delivered(state, event):
    gone = state._replace(events=state.events - {event})
    if event[3]:
        yield f"{event} is delivered once only", gone
    g, _, token, _ = event
    if state.job[0] != g or state.job[1] > token:
        yield f"{event} finds the job gone on", gone
    else:
        begun = gone._replace(invocations=gone.invocations | {(event, "began")})
        yield f"{event} begins", begun


def _rank_acts(state, event, does, mutant):
    g, rank, _, copy = event

    def now(what, was=state):
        rest = was.invocations - {(event, does)}
        return was._replace(invocations=rest | ({(event, what)} if what else frozenset()))

    marked = ("marker", g) in state.store
    if does == "began":
        taken = [entry for entry in state.store if entry[:3] == ("claim", g, rank)]
        if taken or not (marked or UNLOOKED_CLAIM in mutant):
            yield f"{event} is not wanted", now("")
        else:
            claimed = state._replace(store=state.store | {("claim", g, rank, copy)})
            if mutant == "whoever claims marks the store":
                claimed = claimed._replace(store=claimed.store | {("marker", g)})
            yield f"{event} claims", now("claimed", claimed)
        if mutant == "whoever claims marks the store" and not taken and not marked:
            entries = {("claim", g, rank, copy), ("marker", g)}
            marking = state._replace(store=state.store | entries)
            yield f"{event} marks and claims", now("claimed", marking)
    elif does == "claimed":
        rosters = [entry[2] for entry in state.store if entry[:2] == ("roster", g)]
        if rosters and rank in rosters[0] and ("abort", g) not in state.store:
            yield f"{event} takes part", now("takes part")
        yield f"{event} gives up waiting", now("")
    elif does == "takes part":
        ended = state
        if mutant == "a claim is released at the end":
            ended = state._replace(store=state.store - {("claim", g, rank, copy)})
        yield f"{event} ends", now("took part", ended)


def _put(state, entry, g, mutant=""):
    """A first write that looks for the marker in the same transaction; None where it fails."""
    taken = any(known[:2] == entry[:2] for known in state.store)
    marked = ("marker", g) in state.store or UNLOOKED_ROSTER in mutant
    return state._replace(store=state.store | {entry}) if marked and not taken else None


def wrong(state, exact):
    """A key has one writer; a generation is drawn once; an exact roster is a power of two."""
    parts = [event[:2] for event, does in state.invocations if does in ("takes part", "took part")]
    if len(parts) != len(set(parts)):
        return "two invocations take part as one rank of one generation"
    if len({g for g, _ in state.drawn}) != len(state.drawn):
        return "two clients have drawn one generation"
    sizes = {len(entry[2]) for entry in state.store if entry[0] == "roster"}
    if exact and any(size & (size - 1) for size in sizes):
        return "an exact roster is no power of two"
    return ""


def is_final(state):
    """Progress: clients and invocations come to their ends."""
    resting = all(does == "took part" for _, does in state.invocations)
    clients = [client for client in state.clients if client is not None]
    return resting and not state.events and all(client.does == "done" for client in clients)
