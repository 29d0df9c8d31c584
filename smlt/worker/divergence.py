"""The alarm for ranks whose states are no longer equal: a flipped bit, or a task that cheats.

Every few steps each rank's digest of its state rides on the frames of a step, as a metric of its
own name; the means bring all of them to every rank. Only when they differ are digests by tensor
exchanged, to say where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import xxhash

from smlt.aggregation.metric_sums import Metrics
from smlt.errors import SmltError
from smlt.io import exact_json
from smlt.io.tensor import as_tensor
from smlt.worker.task import Task

# No name of a user's metric begins so: log() takes none that cannot be printed.
_PREFIX = "\0state:"
_HALF = 32
_AT_ONCE = 500

Digests = dict[str, int]
"""A 64-bit digest of each tensor's bytes, and of the scalars."""


class DivergedError(SmltError):
    """The ranks hold different states."""


def digests_of(task: Task) -> Digests:
    """Return the digests of a task's state as it is now."""
    found = {
        name: xxhash.xxh3_64_intdigest(as_tensor(array).data.data)
        for name, array in task.state().items()
    }
    scalars = exact_json.dumps(task.scalars()).encode()
    return found | {"scalars": xxhash.xxh3_64_intdigest(scalars)}


def is_asked(rank: int, ranks: int, turn: int) -> bool:
    """Whether a rank's digest is compared in this turn: a frame does not hold those of thousands.

    Every rank is compared with the first one within a few turns.
    """
    groups = -(-ranks // _AT_ONCE)
    return rank == 0 or rank % groups == turn % groups


def as_metric(rank: int, digests: Mapping[str, int]) -> Metrics:
    """Return one digest of them all as a metric: in halves, which float64 holds exactly."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    whole = xxhash.xxh3_64_intdigest(lines.encode())
    return {f"{_PREFIX}{rank}": (float(whole >> _HALF), float(whole & (1 << _HALF) - 1))}


def take_from(metrics: Metrics) -> dict[int, tuple[float, float]]:
    """Take what ``as_metric`` of every rank has put among a step's metrics out of them."""
    names = [name for name in metrics if name.startswith(_PREFIX)]
    return {int(name.removeprefix(_PREFIX)): metrics.pop(name) for name in names}


def describe(digests: Mapping[int, Mapping[str, int]], ranks: int) -> str:
    """Say which ranks differ, and in which tensors."""
    names = sorted({name for held in digests.values() for name in held})
    values = {
        name: {rank: held.get(name) for rank, held in sorted(digests.items())} for name in names
    }
    differing = [name for name in names if len(set(values[name].values())) > 1]
    if not differing:
        return f"the states of the {ranks} ranks differ"
    shown = ", ".join(differing[:3])
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    by_rank = values[differing[0]]
    [(usual, holders), *_] = Counter(by_rank.values()).most_common()
    odd = [rank for rank, value in by_rank.items() if value != usual]
    if 2 * holders > len(by_rank):
        who = f"rank {odd[0]} differs" if len(odd) == 1 else f"ranks {_listed(odd)} differ"
        return f"{who} from the other ranks in {shown}{more}"
    return f"ranks {_listed(by_rank)} differ from each other in {shown}{more}"


def _listed(ranks: Mapping[int, object] | list[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return " and ".join([", ".join(numbers[:-1]), numbers[-1]]) if len(numbers) > 1 else numbers[0]
