"""Settings: argument > environment > ``smlt.toml`` > default; the environment is read only here."""

from smlt.config.goals import BestBy, Until, parse_best, parse_until
from smlt.config.train import TrainConfig, find_run_dir

__all__ = ["BestBy", "TrainConfig", "Until", "find_run_dir", "parse_best", "parse_until"]
