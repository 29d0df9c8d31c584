"""Patterns of parcels between ranks: all to all, all gather, broadcast."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from smlt.aggregation.exchange import Bytes, Exchange
from smlt.io.together import together


async def all_to_all(
    exchange: Exchange,
    label: str,
    outgoing: Sequence[Bytes | None],
    incoming: Sequence[Bytes | None],
    *,
    what: str,
) -> None:
    """Send ``outgoing[r]`` to each rank r and fill ``incoming[r]`` with what it sent; None skips.

    Gather, scatter and reduce are special cases.
    """
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = []
    for rank, (parcel, place) in enumerate(zip(outgoing, incoming, strict=True)):
        if rank == exchange.rank:
            if parcel is not None and place is not None:
                place[...] = parcel
            continue
        if parcel is not None:
            calls.append(partial(exchange.post, f"{label}.{rank}", parcel, to=rank, what=what))
        if place is not None:
            source = [(f"{label}.{exchange.rank}", rank)]
            calls.append(partial(exchange.fetch, source, place, what=what))
    await together(call() for call in calls)


async def all_gather(
    exchange: Exchange, label: str, own: Bytes, incoming: Sequence[Bytes], *, what: str
) -> None:
    """Fill ``incoming[r]`` with what each rank r has; its own place is filled too."""
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        partial(exchange.post, label, own, to=None, what=what)
    ]
    for rank, place in enumerate(incoming):
        if rank == exchange.rank:
            place[...] = own
        else:
            calls.append(partial(exchange.fetch, [(label, rank)], place, what=what))
    await together(call() for call in calls)


async def broadcast(exchange: Exchange, label: str, data: Bytes, root: int, *, what: str) -> None:
    """Send the root's bytes into everybody's.

    Raises:
        UserError: other ranks name another root.
    """
    exchange.agree_on_root(label, root)
    if exchange.rank == root:
        await exchange.post(label, data, to=None, what=what, is_root=True)
    else:
        await exchange.fetch([(label, root)], data, what=what)
