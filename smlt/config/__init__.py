"""Settings: argument > environment > ``smlt.toml`` > default; the environment is read only here."""

from smlt.config.goals import BestBy, Until, parse_best, parse_until
from smlt.config.single_settings import find_objects, find_parameters, find_run_dir
from smlt.config.train import TrainConfig
from smlt.config.train_settings import DEFAULT_RUN_DIR

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
