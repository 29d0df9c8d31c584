"""Settings: argument > environment > ``smlt.toml`` > default; the environment is read only here."""

from smlt.config.goals import BestBy, Until, parse_best, parse_until
from smlt.config.train import (
    DEFAULT_RUN_DIR,
    TrainConfig,
    find_objects,
    find_parameters,
    find_run_dir,
)

__all__ = [
    "DEFAULT_RUN_DIR",
    "BestBy",
    "TrainConfig",
    "Until",
    "find_objects",
    "find_parameters",
    "find_run_dir",
    "parse_best",
    "parse_until",
]
