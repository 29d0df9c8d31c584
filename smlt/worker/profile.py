"""Look at a task on this machine, and time some of its steps as one function would take them.

    python -m smlt.worker.profile REQUEST ANSWER

Both are JSON files: a ``ProfileRequest``, and a ``Profile`` or ``{"error": sentence}``. It is a
process of its own because the number of threads is decided before any library is imported, and
because the user's code may do as it likes there.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smlt.aggregation.gradient_buffer import GradientBuffer
from smlt.errors import SmltError
from smlt.io.tensor import as_tensor
from smlt.worker.data_iterator import Data
from smlt.worker.epochs import batch_sizes, batches_of
from smlt.worker.minibatch_buffer import map_style
from smlt.worker.sample_order import SampleOrder, evaluation_batches
from smlt.worker.schedule import Schedule
from smlt.worker.seeding import derive_seed
from smlt.worker.task import Dataset, Task
from smlt.worker.task_loader import describe, load_task

_STEPS = 5  # of each batch size; the first of all is a warm-up
_LARGEST = 4  # times longer than the time limit may the estimate of a larger batch not be


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to look at; as in a JobSpec, but for the paths, which are this machine's."""

    target: str
    params: dict[str, Any]
    root: str
    data: str | None
    seed: int
    batch_size: int
    virtual_workers: int
    epochs: int | None
    steps: int | None
    limit_s: float
    """Seconds that all timed steps may take; 0 times none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a task is, and how fast it is here."""

    batches: list[tuple[int, int]]
    """Training steps and the size of their batch, in order; of one epoch if the job has no end."""
    has_end: bool
    evaluations: int
    gradient_bytes: int
    """Of float32, as they travel."""
    state_bytes: int
    load_s: float
    """To import the task, open its data and make its model."""
    times: list[tuple[int, float]]
    """Samples and seconds of a step of one rank, ascending; empty if none was timed."""
    evaluation_s: float
    """Of the whole test split by one rank; 0 if it was not timed."""
    peak_mb: float
    """The most memory that this process had."""


def profile(request: ProfileRequest) -> Profile:
    """Load a task and time it.

    Raises:
        SmltError: the task or its data cannot be used.
        Exception: the user's code raised.
    """
    began = time.perf_counter()
    task = load_task(request.target, request.params, Path(request.root))
    train = _dataset(task, request, "train")
    sizes = batch_sizes(task, request.batch_size, request.virtual_workers)
    order = SampleOrder(len(train), sizes, request.virtual_workers, request.seed)
    schedule = Schedule(
        order.epoch_steps,
        evaluates=task.evaluates,
        epochs=request.epochs,
        steps=request.steps,
    )
    task.initialize(request.seed, schedule.training_steps)
    load_s = time.perf_counter() - began
    steps, total = schedule.training_steps, schedule.total
    buffer = GradientBuffer(task.averaged())
    times, evaluation_s = [], 0.0
    if request.limit_s > 0:
        times = list(_step_times(task, train, order, buffer, request.limit_s))
        if task.evaluates:
            evaluation_s = _evaluation_time(task, _dataset(task, request, "test"), request)
    return Profile(
        batches=batches_of(schedule, order) or [(order.steps_in(0), order.batch_size(0))],
        has_end=steps is not None,
        evaluations=0 if steps is None or total is None else total - steps,
        gradient_bytes=buffer.flat.nbytes,
        state_bytes=sum(as_tensor(array).data.nbytes for array in task.state().values()),
        load_s=load_s,
        times=times,
        evaluation_s=evaluation_s,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _dataset(task: Task, request: ProfileRequest, split: str) -> Dataset:
    data = Data({}, Path(), None) if request.data is None else Data.local(request.data)
    task.seed_generators(derive_seed(request.seed))
    return map_style(task.dataset(data, split), type(task).__name__, split)


def _step_times(
    task: Task, train: Dataset, order: SampleOrder, buffer: GradientBuffer, limit_s: float
) -> Iterator[tuple[int, float]]:
    """Time what a rank computes in a step, for ranks of ever more of the virtual workers."""
    shares, spent = [1], 0.0
    while shares[-1] < order.virtual_workers:
        shares.append(min(4 * shares[-1], order.virtual_workers))
    _time_step(task, train, order, buffer, range(1))
    for share in shares:
        seconds = [
            _time_step(task, train, order, buffer, range(share), step % order.steps_in(0))
            for step in range(_STEPS)
        ]
        # What else runs on this machine can only make a step longer.
        yield order.count(0, 0, range(share)), min(seconds)
        spent += sum(seconds)
        if spent + _LARGEST * sum(seconds) > limit_s:
            return


def _time_step(
    task: Task,
    train: Dataset,
    order: SampleOrder,
    buffer: GradientBuffer,
    virtual: range,
    step: int = 0,
) -> float:
    task.seed_generators(derive_seed(order.seed, step))
    began = time.perf_counter()
    samples = _read(train, [int(row) for row in order.batch(0, step, virtual)])
    buffer.begin()
    contribution = task.gradients(samples, buffer.views, lambda _: None)
    buffer.flat /= max(1, len(samples))
    task.apply(buffer.views, frozenset(buffer.names) - contribution.absent)
    task.drain_metrics()
    return time.perf_counter() - began


def _evaluation_time(task: Task, test: Dataset, request: ProfileRequest) -> float:
    """Extrapolate from one batch of the test split to all of it."""
    batches = evaluation_batches(
        len(test), max(1, request.batch_size // 2), request.virtual_workers, range(1)
    )
    if not batches:
        return 0.0
    began = time.perf_counter()
    task.measure(_read(test, batches[0]))
    return (time.perf_counter() - began) * len(test) / len(batches[0])


def _read(dataset: Any, rows: Any) -> list[Any]:
    rows = list(rows)
    read: Callable[[list[int]], list[Any]] | None = getattr(dataset, "__getitems__", None)
    records = [dataset[row] for row in rows] if read is None else list(read(rows))
    transform = getattr(dataset, "transform", None)
    return records if transform is None else [transform(record) for record in records]


def main(request_file: str, answer_file: str) -> None:
    """Answer one request; an error of the user's becomes a sentence."""
    request = ProfileRequest(**json.loads(Path(request_file).read_text(encoding="utf-8")))
    answer: dict[str, Any]
    try:
        answer = asdict(profile(request))
    except SmltError as error:
        answer = {"error": str(error)}
    except Exception as error:
        answer = {"error": f"a step of the task raised {describe(error, Path(request.root))}"}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
