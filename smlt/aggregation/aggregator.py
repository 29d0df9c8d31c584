"""Average gradients among processes that know nothing of smlt but a URL, a name and a rank."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from smlt.aggregation.async_aggregator import AsyncAggregator
from smlt.aggregation.background import EventLoopThread


class Aggregator:
    """Averages gradients over the ranks of a job, through a parameter store and nothing else.

    A context manager. Entering takes this rank's place in the job and waits for nobody; the first
    operation waits for all ranks. Every rank calls the same operations in the same order, with
    arrays of the same names, shapes and dtypes. Whatever goes wrong on one rank ends the job for
    all: they get an error at once, and start anew with a new Aggregator. A name can be used again
    when its last run has ended or died.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` (TLS),
            ``unix:///path/to.sock``, several of these with commas between them,
            ``s3://bucket/prefix`` or ``memory://name`` (threads of one process).
        job: a name that is the same on all ranks, and on no others at the same time.
        rank: of this process, from 0.
        world_size: how many ranks there are.
        time_limit_s: how long to wait for another rank, in seconds.
        shard_mb: size of the shards, in MiB, in which float32 gradients travel; on S3 32, unless
            given.
        aggregators: how many ranks reduce shards; on S3 a quarter of them, unless given. Elsewhere,
            if neither is given, the first averages of each layout try a few ways, one average at a
            time, and the best is kept (``shards``).
        wire_dtype: ``"bf16"`` or ``"fp16"`` sends float32, float16 and bfloat16 gradients rounded,
            in half the bytes; what rounding takes away is added to the next gradient of the same
            names, shapes and dtypes. With ``"auto"`` the first averages of each layout find out
            whether bf16 makes them a fifth shorter, and take it then: bits depend on times.
        lease_s: a rank that is silent for so many seconds is dead, and its place free again; 10,
            on S3 30, unless given.

    Raises:
        ConfigError: on entering: the URL, the password, another world size than the other ranks',
            or a rank that another living process has.
        UserError: it has been entered before.
        StoreUnreachableError: the store cannot be reached.

    Every operation raises RankMissingError, naming rank, step and shard, when a rank does not come
    within the time limit; UserError when the ranks call different things; AbortedError when another
    rank has failed; StoreLostError when the store was restarted. What the arrays hold is then
    undefined.
    """

    def __init__(
        self,
        url: str,
        *,
        job: str,
        rank: int,
        world_size: int,
        time_limit_s: float = 120.0,
        shard_mb: float | None = None,
        aggregators: int | None = None,
        wire_dtype: str = "fp32",
        lease_s: float | None = None,
    ) -> None:
        self._twin = AsyncAggregator(
            url,
            job=job,
            rank=rank,
            world_size=world_size,
            time_limit_s=time_limit_s,
            shard_mb=shard_mb,
            aggregators=aggregators,
            wire_dtype=wire_dtype,
            lease_s=lease_s,
        )
        self.rank = self._twin.rank
        self.world_size = self._twin.world_size
        self._thread = EventLoopThread(f"smlt-aggregator-{rank}")

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each kind this rank has sent to the store; S3 bills them."""
        return self._twin.requests

    @property
    def shards(self) -> Mapping[str, str]:
        """How arrays of each layout travel, in words, once that is settled.

        Where the first averages tried several ways, it says what they took; so does the log.
        """
        return self._twin.shards

    def __enter__(self) -> Self:
        self._twin.claim()  # before there is a second thread
        with contextlib.ExitStack() as resources:
            resources.enter_context(self._thread)
            self._thread.call(self._twin.join())
            resources.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        try:
            self._thread.call(self._twin.__aexit__(*exc_info))
        finally:
            self._thread.__exit__(*exc_info)

    def allreduce(self, grads: Any, weight: float = 1.0) -> None:
        """Replace every array by its mean over all ranks, in place.

        Args:
            grads: an array, or a dict, list or tuple of arrays of any shape: NumPy arrays, torch
                tensors, or anything with DLPack or the buffer protocol. float32, float16 and
                bfloat16 are averaged in float32; float64 and integers in float64, integers being
                rounded to the nearest.
            weight: how much this rank counts, such as the samples in its batch. The mean is
                sum(weight × grads) / sum(weight); zeros if nobody has any weight.
        """
        self._thread.call(self._twin.allreduce(grads, weight))

    def allreduce_async(self, grads: Any, weight: float = 1.0) -> concurrent.futures.Future[None]:
        """Begin ``allreduce`` and return a future of it; several overlap.

        The arrays must be left alone until the future is done. Leaving the ``with`` statement waits
        for it.
        """
        return self._thread.submit(self._twin.allreduce(grads, weight))

    def reduce_scatter(self, array: Any) -> NDArray[Any]:
        """Return this rank's part of the mean over ranks.

        Returns:
            One of world_size parts of the flattened array, as equal as they go, the longer ones
            first; float32 or float64.
        """
        return self._thread.call(self._twin.reduce_scatter(array))

    def all_gather(self, array: Any) -> Any:
        """Return the arrays of all ranks, of one shape and dtype, stacked along a new first axis.

        Returns:
            A torch tensor if the array is one, else a NumPy array: ``(world_size, *array.shape)``.
        """
        return self._thread.call(self._twin.all_gather(array))

    def broadcast(self, arrays: Any, root: int = 0) -> None:
        """Overwrite arrays of any dtype with those of one rank, in place."""
        self._thread.call(self._twin.broadcast(arrays, root))

    def barrier(self) -> None:
        """Return when every rank has called it."""
        self._thread.call(self._twin.barrier())

    def state_dict(self) -> dict[str, NDArray[np.float32]]:
        """Return what this rank owes on a lossy wire, for its own checkpoint; empty on fp32."""
        return self._thread.call(self._twin.state_dict())

    def load_state_dict(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Go on from the ``state_dict`` of an earlier aggregator, of this rank or any other.

        Arrays of other names or shapes than are averaged later are ignored.
        """
        self._thread.call(self._twin.load_state_dict(state))
