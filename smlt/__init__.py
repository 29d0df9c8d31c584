"""Train machine-learning models on serverless functions.

Public names are resolved when first used, so that ``import smlt`` loads neither torch nor boto.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smlt._version import __version__

if TYPE_CHECKING:
    from smlt.aggregation.aggregator import Aggregator
    from smlt.aggregation.async_aggregator import AsyncAggregator
    from smlt.config import TrainConfig
    from smlt.continuation import Continuation
    from smlt.errors import SmltError
    from smlt.kept_jobs import KeptJobs
    from smlt.session import Session
    from smlt.worker.data_iterator import Data
    from smlt.worker.task import Contribution, Metric, Task
    from smlt.worker.torch_task import TorchTask

__all__ = [
    "Aggregator",
    "AsyncAggregator",
    "Continuation",
    "Contribution",
    "Data",
    "KeptJobs",
    "Metric",
    "Session",
    "SmltError",
    "Task",
    "TorchTask",
    "TrainConfig",
    "__version__",
]

_HOMES = {
    "Aggregator": "smlt.aggregation.aggregator",
    "AsyncAggregator": "smlt.aggregation.async_aggregator",
    "Continuation": "smlt.continuation",
    "Contribution": "smlt.worker.task",
    "Data": "smlt.worker.data_iterator",
    "KeptJobs": "smlt.kept_jobs",
    "Metric": "smlt.worker.task",
    "Session": "smlt.session",
    "SmltError": "smlt.errors",
    "Task": "smlt.worker.task",
    "TorchTask": "smlt.worker.torch_task",
    "TrainConfig": "smlt.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise ImportError(f"smlt.{name} needs PyTorch: pip install 'smlt[torch]'.") from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
