"""A training job's settings, read from all sources and checked once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smlt.config.goals import parse_best, parse_until
from smlt.config.limits import (
    CONCURRENCY_LIMIT,
    FUNCTION_S,
    LARGEST_SHARD_MB,
    MEMORY_MB,
    WIRE_DTYPES,
)
from smlt.config.sharding import AUTO
from smlt.config.sources import CONFIG_FILE, flag, join, kinds_of, layers
from smlt.config.train_settings import TrainSettings
from smlt.config.values import Source, shown
from smlt.errors import ConfigError

_TARGET = re.compile(r".+:[^:/\\]+")
_OBJECTS = re.compile(r"s3://.+|file:///.+")
_ENDPOINT = re.compile(r"https?://[^/]+/?")
_SERVER = re.compile(r"(rediss?|unix|s3)://.+")
_COUNTS = (
    "workers",
    "max_workers",
    "epochs",
    "steps",
    "batch_size",
    "patience",
    "virtual_workers",
    "keep_checkpoints",
)
_PLATFORMS = ("local", "aws")
_PASSWORD = re.compile(r"[^?]*//[^@/]*:[^@/]+@|.*[?&]password=")
_PLAIN = re.compile(r"redis://(?!(?:127\.|localhost\b|\[::1\]))")
_DETERMINISMS = ("exact", "fast")
_TUNABLE = ("aggregators", "wire-dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(TrainSettings):
    """All that ``smlt train`` can be told.

    Raises:
        ConfigError: a value cannot be used; the one sentence says where it came from.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(self.params))
        if self.data is not None:
            source = Source(self.data)
            object.__setattr__(self, "data", source if source.is_remote else Path(source))
        for name in ("init_from", "run_dir", "prices"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else Path(value))
        self._check_numbers()
        self._check_ends()
        self._check_watch()
        self._check_split()
        self._check_goals()
        self._check_tune()
        self._check_task()
        self._check_platform()
        if self.epochs is None and self.steps is None and self.until is None:
            object.__setattr__(self, "epochs", 1)

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Self:
        """Join arguments, environment, ``smlt.toml`` in the folder, and defaults.

        Args:
            arguments: by field name; None means not given, text is read as its field's type.
            environment: by default the process's own.
            folder: by default the current one.

        Raises:
            ConfigError: a value cannot be used, or the file has an unknown key or is no TOML.
        """
        values, given = join(layers("train", arguments, KINDS, environment, folder), KINDS)
        sources = {name: f"{flag(name)} (by default)" for name in KINDS} | given
        if "target" not in values:
            raise ConfigError(
                "No TARGET is given: name the task to train, as in `smlt train train.py:Mnist`, "
                f"or set target in {CONFIG_FILE}."
            )
        return cls(**values, sources=sources)

    def _refuse(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where(name)} is {shown(getattr(self, name))}: {why}")

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise self._refuse(name, "give a whole number of at least 1.")
        if not 0 <= self.seed < 1 << 63:
            raise self._refuse("seed", "give a whole number from 0 to 2^63 - 1.")
        for name in ("workers", "max_workers"):
            if (getattr(self, name) or 0) > CONCURRENCY_LIMIT:
                raise self._refuse(
                    name,
                    f"Lambda runs at most {CONCURRENCY_LIMIT:,} functions of an account at a "
                    "time, so give no more than that.",
                )
        if self.link_mbps is not None and self.link_mbps <= 0:
            raise self._refuse("link_mbps", "give more than 0 megabytes a second.")
        if self.link_mbps is not None and self.inline and self.parameters is None:
            raise self._refuse("link_mbps", "--inline has no link that could be slow.")
        if self.chaos is not None and self.inline:
            raise self._refuse("chaos", "--inline has no Lambda service that could misbehave.")
        for name in ("orphan_timeout", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise self._refuse(name, "give a time of more than 0.")
        shortest, longest = FUNCTION_S
        if not shortest <= self.function_timeout <= longest:
            raise self._refuse("function_timeout", f"give {shortest:g} to {longest:g} seconds.")
        low, high = MEMORY_MB
        if not low <= self.memory_mb <= high:
            raise self._refuse("memory_mb", f"Lambda offers {low} to {high:,} MB.")
        if self.shard_mb is not None and not 0 < self.shard_mb <= LARGEST_SHARD_MB:
            raise self._refuse("shard_mb", f"give more than 0 and at most {LARGEST_SHARD_MB} MB.")

    def _check_ends(self) -> None:
        if self.until is not None:
            parse_until(self.until, self.where("until"))
        if self.keep_best is not None:
            parse_best(self.keep_best, self.where("keep_best"))
        if self.patience is not None and self.watched is None:
            raise self._refuse(
                "patience",
                "there is no metric to be patient with, so name one with --keep-best or --until.",
            )

    def _check_watch(self) -> None:
        for name in ("deadline", "steps", "until", "patience"):
            if self.watch and getattr(self, name) is not None:
                raise ConfigError(
                    f"{self.where(name)} does not go with --watch: such a job has no end of its "
                    "own, and trains --epochs on every burst."
                )

    def _check_split(self) -> None:
        streams = self.streams
        if streams & (streams - 1):
            raise self._refuse("virtual_workers", "give a power of two.")
        if streams < self.workers:
            raise self._refuse(
                "virtual_workers",
                f"that leaves some of {self.workers} workers without data, so give a power of two "
                f"of at least {self.workers}.",
            )
        if self.batch_size < streams:
            raise self._refuse(
                "batch_size",
                f"each batch is shared by {streams} virtual workers, so give at least {streams}, "
                "or a smaller --virtual-workers.",
            )
        if self.determinism not in _DETERMINISMS:
            raise self._refuse("determinism", "write exact or fast.")
        if self.wire_dtype not in (*WIRE_DTYPES, AUTO):
            raise self._refuse("wire_dtype", "write fp32, bf16, fp16 or auto.")
        if self.determinism == "exact" and self.wire_dtype != "fp32":
            raise self._refuse(
                "wire_dtype",
                "exact determinism needs gradients as they are, and this may round them by rank, "
                "so give fp32, or --determinism fast.",
            )
        if self.aggregators is not None and not 1 <= self.aggregators <= self.workers:
            raise self._refuse(
                "aggregators", f"give a number from 1 to the {self.workers} workers there are."
            )

    def _check_goals(self) -> None:
        for name in ("deadline", "budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise self._refuse(name, "give more than 0.")
        if self.max_workers is not None and self.max_workers < self.workers:
            raise self._refuse(
                "max_workers", f"the job begins with {self.workers} workers, so give that or more."
            )
        if self.prices is not None and not self.prices.is_file():
            raise self._refuse("prices", "there is no such file.")

    def _check_tune(self) -> None:
        unknown = [name for name in self.tune if name not in _TUNABLE]
        if unknown:
            raise self._refuse(
                "tune", "write aggregators, wire-dtype or both, with a comma between them."
            )
        if self.tune and not self.adapts:
            raise self._refuse(
                "tune", "only a job that adapts does that, so give --adapt, a goal, or nothing."
            )
        if "wire-dtype" in self.tune and self.wire_dtype == AUTO:
            raise self._refuse("tune", "wire-dtype is tried by --wire-dtype auto, or by this.")
        if "wire-dtype" in self.tune and self.determinism == "exact":
            raise self._refuse(
                "tune",
                "exact determinism needs gradients as they are, so leave out wire-dtype, or give "
                "--determinism fast.",
            )

    def _check_platform(self) -> None:
        if self.platform not in _PLATFORMS:
            raise self._refuse("platform", "write local or aws.")
        if self.platform == "local":
            return
        for name in ("inline", "chaos"):
            if getattr(self, name) not in (None, False):
                raise self._refuse(name, "that is for functions on this machine.")
        if self.objects is None or not self.objects.startswith("s3://"):
            raise ConfigError(
                "AWS's functions cannot see this machine's disk: give --objects s3://bucket/prefix."
            )
        if self.parameters is None or self.parameters.startswith("unix:"):
            raise ConfigError(
                "AWS's functions cannot see this machine: give --parameters, s3://bucket/prefix or "
                "the rediss:// URL of a Valkey in their network."
            )
        if _PASSWORD.match(self.parameters):
            raise ConfigError(
                f"{self.where('parameters')} holds a password, which would stand in every payload: "
                "keep it in Secrets Manager, and write ?password_from=secretsmanager:NAME instead."
            )
        if _PLAIN.match(self.parameters) and "plaintext=true" not in self.parameters:
            raise ConfigError(
                f"{self.where('parameters')} has no TLS, so that whoever is in that network could "
                "read and change gradients: write rediss://, or add ?plaintext=true."
            )

    def _check_task(self) -> None:
        if not _TARGET.fullmatch(self.target):
            raise self._refuse("target", "write file.py:Class or module:Class.")
        if self.parameters is not None and not _SERVER.fullmatch(self.parameters):
            # The URL may hold a password, so it is not repeated.
            raise ConfigError(
                f"{self.where('parameters')} is no URL of a Valkey or Redis server: write "
                "redis://host:6379/0, rediss://… for TLS, unix:///path/to/socket, or s3://bucket."
            )
        if self.objects is not None and not _OBJECTS.fullmatch(self.objects):
            raise self._refuse("objects", "write s3://bucket/prefix or file:///absolute/path.")
        if self.s3_endpoint is not None and not _ENDPOINT.fullmatch(self.s3_endpoint):
            raise self._refuse("s3_endpoint", "write http://host:9000 or https://host.")
        if isinstance(self.data, Path) and not self.data.is_dir():
            raise self._refuse("data", "there is no such folder; give the one that holds the data.")
        if isinstance(self.data, Source) and not _OBJECTS.fullmatch(self.data):
            raise self._refuse("data", "write s3://bucket/prefix, or a folder.")
        if self.init_from is not None and not self.init_from.is_file():
            raise self._refuse("init_from", "there is no such file; give a .safetensors file.")
        for text in self.params:
            name, equals, _ = text.partition("=")
            if not equals or not name.isidentifier():
                raise ConfigError(
                    f"{self.where('params')} is {text!r}: write NAME=VALUE, as in --param lr=0.02."
                )


KINDS = kinds_of(TrainSettings)
"""The fields by name, with the plain type of each."""
