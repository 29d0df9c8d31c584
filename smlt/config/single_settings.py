"""Single settings of a job's, for the commands that need no others and name no task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smlt.config.aws import with_endpoint
from smlt.config.sources import layers
from smlt.config.train import KINDS
from smlt.config.train_settings import DEFAULT_RUN_DIR
from smlt.config.values import shown, typed
from smlt.errors import ConfigError


def find_run_dir(
    argument: Path | None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Path:
    """Return the run directory by the precedence of ``TrainConfig.load``, and check nothing else.

    Raises:
        ConfigError: ``smlt.toml`` cannot be used.
    """
    if argument is not None:
        return argument
    value, source = _setting("run_dir", environment, folder) or (DEFAULT_RUN_DIR, "")
    return Path(typed(value, Path, source))


def find_objects(argument: str | None) -> str | None:
    """Return the object store's URL by the precedence of ``TrainConfig.load``, if one is named.

    Raises:
        ConfigError: it is no URL of a bucket, or ``smlt.toml`` cannot be used.
    """
    value, source = (argument, "--objects") if argument else _setting("objects") or (None, "")
    if value is None:
        return None
    if not str(value).startswith("s3://"):
        raise ConfigError(f"{source} is {shown(value)}: write s3://bucket/prefix.")
    endpoint, _ = _setting("s3_endpoint") or (None, "")
    return with_endpoint(str(value), endpoint)


def find_parameters(argument: str | None) -> str | None:
    """Return the parameter store's URL, as ``find_objects`` finds the object store's."""
    value, _ = (argument, "") if argument else _setting("parameters") or (None, "")
    endpoint, _ = _setting("s3_endpoint") or (None, "")
    return None if value is None else with_endpoint(str(value), endpoint)


def _setting(
    name: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> tuple[Any, str] | None:
    found = layers("train", {}, KINDS, environment, folder)
    return next((layer[name] for layer in reversed(found) if name in layer), None)
