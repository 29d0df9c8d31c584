"""``torch.distributed`` through a parameter store: a process group in Python.

torch 2.13 calls ``all_gather_single`` and its like where 2.6 calls ``_allgather_base``; both
names are here.
"""

# torch declares short forms for direct callers, too; torch.distributed itself uses but these.
# mypy: disable-error-code="override, assignment"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch._C._distributed_c10d import PrefixStore

from smlt.aggregation.group import Operation
from smlt.aggregation.options import member
from smlt.aggregation.tensors import Staged, byte_view, numeric_view
from smlt.aggregation.torch_fit import check_alike, check_each, cut
from smlt.aggregation.torch_messages import Messages, Tensors
from smlt.aggregation.torch_world import World
from smlt.errors import UserError

_OPERATIONS = {
    "SUM": "sum", "AVG": "avg", "PRODUCT": "product", "MIN": "min", "MAX": "max",
    "BAND": "band", "BOR": "bor", "BXOR": "bxor",
}  # fmt: skip


class SmltProcessGroup(Messages):
    """One rank's end of a group. Collectives return at once, with a Work to wait for."""

    def allreduce(self, tensors: Tensors, opts: Any = None) -> Any:
        return self.allreduce_coalesced(tensors, opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Any:
        op = _operation(opts, tensors)
        staged = [numeric_view(tensor) for tensor in tensors]
        return self.work([self._reduction(each, op) for each in staged], staged, tensors)

    def reduce(self, tensors: Tensors, opts: Any) -> Any:
        op = _operation(opts, tensors)
        staged = [numeric_view(tensor) for tensor in tensors]
        if self._root(opts) != self.group_rank:
            staged = [Staged(each.array.copy(), wire=each.wire) for each in staged]
        return self.work([self._reduction(each, op) for each in staged], staged, tensors)

    def _reduction(self, staged: Staged, op: str) -> Operation:
        array, group = staged.array, self.joined
        if op == "avg" and array.dtype == np.bool_:
            raise UserError("truth values have no average: use MAX or MIN, or numbers")
        if array.dtype != np.float32 or op not in ("sum", "avg"):
            return group.all_reduce(array, op)
        # A mean divides by the sum of the weights: that of a sum is 1, exactly.
        weight = 1.0 if op == "avg" or self.group_rank == 0 else 0.0
        what = f"all_reduce {op} of {array.size} {staged.wire.dtype}"
        return self.reductions.reduce(array, weight=weight, what=what, wire=staged.wire)

    def broadcast(self, tensors: Tensors, opts: Any) -> Any:
        staged = [byte_view(tensor) for tensor in tensors]
        calls = [
            self.joined.broadcast(each.array, self._root(opts), what=_said("broadcast", each))
            for each in staged
        ]
        back = [] if opts.rootRank == self.group_rank else staged
        return self.work(calls, back, tensors)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Any:
        calls, back = [], []
        for output, source in zip(outputs, inputs, strict=True):
            check_each("all_gather", output, self.group_size, like=source)
            rows = [byte_view(tensor) for tensor in output]
            calls.append(self._gathering(source, [row.array for row in rows]))
            back += rows
        return self.work(calls, back, outputs)

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> Any:
        # A list for each rank here, where allgather has one for each tensor.
        return self.allgather([list(rows) for rows in zip(*outputs, strict=True)], inputs, opts)

    def all_gather_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        return self.all_gather_single_coalesced([output], [source], opts)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        for output, source in zip(outputs, inputs, strict=True):
            check_alike("all_gather", output, source, self.group_size)
        staged = [byte_view(output) for output in outputs]
        calls = [
            self._gathering(source, np.split(each.array, self.group_size))
            for each, source in zip(staged, inputs, strict=True)
        ]
        return self.work(calls, staged, outputs)

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _gathering(self, source: torch.Tensor, rows: list[NDArray[np.uint8]]) -> Operation:
        own = byte_view(source)
        return self.joined.all_gather(own.array, rows, what=_said("all_gather", own))

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Any:
        calls, back = [], []
        for output, pieces in zip(outputs, inputs, strict=True):
            check_each("reduce_scatter", pieces, self.group_size)
            check_alike("reduce_scatter", output, pieces[self.group_rank])
            op, place = _operation(opts, [output]), numeric_view(output)
            arrays = [numeric_view(piece).array for piece in pieces]
            calls.append(self.joined.reduce_scatter(arrays, place.array, op))
            back.append(place)
        return self.work(calls, back, outputs)

    def reduce_scatter_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        return self.reduce_scatter_single_coalesced([output], [source], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        for output, source in zip(outputs, inputs, strict=True):
            check_alike("reduce_scatter", source, output, self.group_size)
        pieces = [list(source.reshape(self.group_size, -1)) for source in inputs]
        return self.reduce_scatter(outputs, pieces, opts)

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Any:
        return self._all_to_all(outputs, inputs, outputs)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        source: torch.Tensor,
        output_splits: list[int],
        input_splits: list[int],
        opts: Any = None,
    ) -> Any:
        outputs = cut("all_to_all_single", output, output_splits, self.group_size)
        inputs = cut("all_to_all_single", source, input_splits, self.group_size)
        return self._all_to_all(outputs, inputs, [output])

    def _all_to_all(self, outputs: Tensors, inputs: Tensors, result: Tensors) -> Any:
        for tensors in (outputs, inputs):
            check_each("all_to_all", tensors, self.group_size)
        check_alike("all_to_all", outputs[self.group_rank], inputs[self.group_rank])
        back = [byte_view(output) for output in outputs]
        outgoing = [byte_view(source).array for source in inputs]
        incoming = [each.array for each in back]
        call = self.joined.all_to_all(outgoing, incoming, what="all_to_all")
        return self.work([call], back, result)

    alltoall_base = all_to_all_single

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Any:
        own = byte_view(inputs[0])
        outgoing = self._only(self._root(opts), own.array)
        back: list[Staged] = []
        incoming: list[NDArray[np.uint8] | None] = [None] * self.group_size
        if self.group_rank == opts.rootRank:
            check_each("gather", outputs[0], self.group_size, like=inputs[0])
            back = [byte_view(tensor) for tensor in outputs[0]]
            incoming = [each.array for each in back]
        call = self.joined.all_to_all(outgoing, incoming, what=_said("gather", own))
        return self.work([call], back, outputs)

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Any:
        place = byte_view(outputs[0])
        incoming = self._only(self._root(opts), place.array)
        outgoing: list[NDArray[np.uint8] | None] = [None] * self.group_size
        if self.group_rank == opts.rootRank:
            check_each("scatter", inputs[0], self.group_size, like=outputs[0])
            outgoing = [byte_view(tensor).array for tensor in inputs[0]]
        call = self.joined.all_to_all(outgoing, incoming, what=_said("scatter", place))
        return self.work([call], [place], outputs)

    def _root(self, opts: Any) -> int:
        return member("root", opts.rootRank, self.group_size)

    def _only(self, rank: int, array: NDArray[np.uint8]) -> list[NDArray[np.uint8] | None]:
        return [array if other == rank else None for other in range(self.group_size)]

    def barrier(self, opts: Any = None) -> Any:
        return self.work([self.joined.barrier()], [], [])


def _operation(opts: Any, tensors: Tensors) -> str:
    op = distributed.ReduceOp.SUM if opts is None else opts.reduceOp
    for name, ours in _OPERATIONS.items():
        if op == getattr(distributed.ReduceOp, name):
            if ours not in ("sum", "avg") and any(tensor.is_complex() for tensor in tensors):
                raise UserError(f"complex numbers, sent as pairs, have no {name}: use SUM or AVG")
            return ours
    raise UserError(f"the smlt backend has no such reduction: it has {', '.join(_OPERATIONS)}")


def _said(operation: str, staged: Staged) -> str:
    return f"{operation} of {staged.array.nbytes} bytes"


def create(options: Any, _: object = None) -> SmltProcessGroup:
    """Make a process group; the creator that ``torch.distributed`` calls.

    Raises:
        UserError: the default group was not initialised by a URL of ours.
    """
    store = options.store
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    world: World | None = getattr(store, "world", None)
    if world is None:
        raise UserError(
            "the smlt backend needs its own rendezvous: init_process_group('smlt',"
            " init_method='smlt+redis://host:6379/0?job=name', rank=…, world_size=…)"
        )
    limit_s = options.timeout.total_seconds()
    group = world.open_group(options.group_id, options.group_rank, options.group_size, limit_s)
    return SmltProcessGroup(world, group, options.group_id)
