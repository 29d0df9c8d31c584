"""What the ranks owe of rounded gradients, kept beside the checkpoint of the same step.

It is no part of the replicated state: each rank writes its own before its part of that, so that it
is there when the manifest is, unless the rank is lost. Then it is forgotten: a rounding error of
one step. With another number of ranks each takes over what some of the earlier ones owed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.wire import Wire
from smlt.errors import CheckpointError
from smlt.io.keys import JobObjects
from smlt.io.object_store import ObjectStore
from smlt.io.weights import read_weights, save_weights
from smlt.messages.job import Position

_OWED = "owed"


async def save_residual(
    objects: ObjectStore, job_id: str, at: Position, rank: int, owed: NDArray[np.float32]
) -> None:
    """Write what a rank owes at the start of a step."""
    key = JobObjects(job_id).residual(at.generation, at.step, rank)
    await save_weights(objects, key, {_OWED: owed})


async def load_residuals(
    objects: ObjectStore, job_id: str, at: Position, rank: int, world_size: int, wire: Wire
) -> None:
    """Add to the wire's debts a rank's share of what the ranks of a checkpoint owed.

    Raises:
        CheckpointError: a residual is damaged, or that of another model.
    """
    if wire.owed is None:
        return
    folder = JobObjects(job_id).residuals(at.generation, at.step)
    keys = sorted([info.key async for info in objects.list(folder)])
    for key in keys[rank::world_size]:
        stored = (await read_weights(objects, key)).get(_OWED)
        if stored is None or stored.dtype != "F32" or stored.shape != wire.owed.shape:
            raise CheckpointError(f"{key} is not what a rank of this job owes")
        wire.owed += stored.data.view(np.float32)
