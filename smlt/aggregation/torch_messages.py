"""Messages from rank to rank under ``torch.distributed``: send, receive, from any source."""

# torch declares short forms for direct callers, too; torch.distributed itself uses but these.
# mypy: disable-error-code="override"

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from smlt.aggregation.group import Group
from smlt.aggregation.tensors import byte_view
from smlt.aggregation.torch_member import Member
from smlt.aggregation.torch_work import SmltWork
from smlt.aggregation.torch_world import World

Tensors = Sequence[torch.Tensor]


class Messages(Member):
    """The n-th message from one rank to another under a tag is the n-th that is received."""

    def __init__(self, world: World, group: Group, name: str) -> None:
        super().__init__(world, group, name)
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> Any:
        group, data = self.joined, byte_view(tensors[0]).array
        label = f"p{to}.{tag}.{self._sent[to, tag]}"
        self._sent[to, tag] += 1
        return self.work([lambda: group.send(label, data, to)], [], tensors)

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> Any:
        labels = [self._next_label(source, tag)]
        self._received[source, tag] += 1
        return self._receive(tensors, labels, SmltWork(tensors))

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Any:
        others = [rank for rank in range(self.group_size) if rank != self.group_rank]
        work = SmltWork(tensors)

        def came_from(source: int) -> None:
            work.source = source
            self._received[source, tag] += 1

        labels = [self._next_label(rank, tag) for rank in others]
        return self._receive(tensors, labels, work, came_from)

    def _receive(
        self,
        tensors: Tensors,
        labels: Sequence[tuple[str, int]],
        work: SmltWork,
        came_from: Callable[[int], None] = lambda source: None,
    ) -> SmltWork:
        group, place = self.joined, byte_view(tensors[0])

        async def receive() -> None:
            came_from(labels[await group.receive(labels, place.array)][1])

        return self.work([receive], [place], tensors, work)

    def _next_label(self, source: int, tag: int) -> tuple[str, int]:
        return f"p{self.group_rank}.{tag}.{self._received[source, tag]}", source
