"""What a user may ask of a training job, checked once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints
from urllib.parse import quote

from smlt.config.aws import s3_endpoint
from smlt.config.goals import BestBy, parse_best, parse_until
from smlt.config.sources import (
    CONFIG_FILE,
    Duration,
    flag,
    from_arguments,
    from_environment,
    from_file,
    merged,
    shown,
    typed,
)
from smlt.errors import ConfigError

DEFAULT_RUN_DIR = Path(".smlt")
CONCURRENCY_LIMIT = 1000  # functions at a time: what an AWS account has unless it asks for more
MEMORY_MB = (128, 10240)
LARGEST_SHARD_MB = 512  # the largest value that Valkey stores under one key

_ORPHAN_TIMEOUT = Duration(5)
FUNCTION_S = (Duration(20), Duration(900))
"""Less leaves no time between start and hand-over; more Lambda does not give."""
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
_WIRE_DTYPES = ("fp32", "bf16", "fp16")
_MOST_STREAMS = 128  # by default; more are asked for with --virtual-workers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All that ``smlt train`` can be told.

    Raises:
        ConfigError: a value cannot be used; the one sentence says where it came from.
    """

    target: str
    """``file.py:Class`` or ``module:Class``."""
    data: Path | None = None
    """Folder of the data; by default the folder ``data`` beside the task's file."""
    workers: int = 4
    memory_mb: int = 1769
    """Memory of one function, in MB of 1,048,576 bytes; 1,769 MB buy one whole vCPU."""
    epochs: int | None = None
    """1 when neither epochs nor steps nor until is given."""
    steps: int | None = None
    batch_size: int = 64
    """Samples in one step, over all workers."""
    seed: int = 0
    until: str | None = None
    patience: int | None = None
    """Evaluations without a better metric after which training ends."""
    init_from: Path | None = None
    keep_best: str | None = None
    shard_mb: float | None = None
    """None means a size that suits the parameter store."""
    aggregators: int | None = None
    wire_dtype: str = "fp32"
    """How gradients travel: ``bf16`` and ``fp16`` are rounded, with error feedback."""
    run_dir: Path = DEFAULT_RUN_DIR
    params: tuple[str, ...] = ()
    """``KEY=VALUE`` each, for the task's constructor."""
    inline: bool = False
    """One rank, in this process; workers does not matter then."""
    trace: bool = False
    """Write to the event log when each shard was sent and received."""
    json: bool = False
    quiet: bool = False
    objects: str | None = None
    """URL of the object store, ``s3://bucket/prefix``; None keeps objects in the run directory."""
    s3_endpoint: str | None = None
    """URL of an S3-compatible service, for all S3 URLs that name none; None is AWS."""
    link_mbps: float | None = None
    """Megabytes (10^6 bytes) a second of every worker's link to the parameter store, each way."""
    parameters: str | None = None
    """URL of a running Valkey or Redis server; None starts one on this machine."""
    virtual_workers: int | None = None
    """Fixed partition of the data; None means ``streams``' own choice."""
    deadline: Duration | None = None
    """Seconds from the start within which the job is to be done; it is stopped then."""
    budget: float | None = None
    """US dollars that the job may cost; it is stopped before it crosses them."""
    adapt: bool | None = None
    """Let the job change workers and memory itself; by default if it has a deadline or budget."""
    max_workers: int | None = None
    """The most that an adapting job may use; None means as many as ``streams``."""
    orphan_timeout: Duration = _ORPHAN_TIMEOUT
    """Seconds for which workers go on without a client; then they save and leave."""
    platform: str = "local"
    """``local``: functions run on this machine; ``aws``: in an AWS account."""
    yes: bool = False
    """Start on AWS without a budget and without being asked."""
    function_timeout: Duration = FUNCTION_S[1]
    """Seconds after which Lambda ends a function; the job goes on in the next ones."""
    chaos: int | None = None
    """Seed of a Lambda service that misbehaves, for trying a job against it."""
    prices: Path | None = None
    """A file whose rates go before those that come with the package."""
    determinism: str = "fast"
    """``exact``: the same bits for any number of workers; ``fast``: for a fixed one."""
    keep_checkpoints: int = 3
    sources: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each value came from, in words, for messages about it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(self.params))
        for name in ("data", "init_from", "run_dir", "prices"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else Path(value))
        self._check_numbers()
        self._check_ends()
        self._check_split()
        self._check_goals()
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
        layers = [
            from_file((folder or Path()) / CONFIG_FILE, _NAMES),
            from_environment(os.environ if environment is None else environment, _NAMES),
            from_arguments(arguments),
        ]
        values: dict[str, Any] = {}
        sources = {name: f"{flag(name)} (by default)" for name in _NAMES}
        for layer in layers:
            for name, (value, source) in layer.items():
                given = typed(value, _kind(name), source)
                # --param lr=0.1 changes one parameter of the file's, not all of them.
                values[name] = merged(values.get(name, ()), given) if name == "params" else given
                sources[name] = source
        if "target" not in values:
            raise ConfigError(
                "No TARGET is given: name the task to train, as in `smlt train train.py:Mnist`, "
                f"or set target in {CONFIG_FILE}."
            )
        return cls(**values, sources=sources)

    def where(self, name: str) -> str:
        """Say in words where a field's value came from: ``--workers``, ``SMLT_WORKERS``, a line."""
        return self.sources.get(name, name)

    @property
    def object_store(self) -> str | None:
        """The object store's URL with the endpoint in it, as every worker needs it."""
        return self._with_endpoint(self.objects)

    @property
    def parameter_store(self) -> str | None:
        """The parameter store's URL with the endpoint in it, as every worker needs it."""
        return self._with_endpoint(self.parameters)

    def _with_endpoint(self, url: str | None) -> str | None:
        return _with_endpoint(url, self.s3_endpoint)

    @property
    def streams(self) -> int:
        """Virtual workers: the given number, else a power of two that is enough for all workers.

        A job that adapts gets as many as its batch allows, up to 128, for it can never use more
        workers than these.
        """
        if self.virtual_workers is not None:
            return self.virtual_workers
        least = max(16, 1 << (max(self.workers, self.max_workers or 1) - 1).bit_length())
        if not self.adapts or self.max_workers is not None:
            return least
        return max(least, min(_MOST_STREAMS, 1 << (self.batch_size.bit_length() - 1)))

    @property
    def adapts(self) -> bool:
        """Whether the job chooses its workers and memory itself as it goes."""
        if self.inline:
            return False
        has_goal = self.deadline is not None or self.budget is not None
        return has_goal if self.adapt is None else self.adapt

    @property
    def most_workers(self) -> int:
        """The most workers that an adapting job may use."""
        return min(self.streams, self.max_workers or CONCURRENCY_LIMIT)

    @property
    def watched(self) -> BestBy | None:
        """The metric that patience looks at: that of keep_best, else that of until."""
        if self.keep_best is not None:
            return parse_best(self.keep_best, self.where("keep_best"))
        if self.until is not None:
            until = parse_until(self.until, self.where("until"))
            return BestBy(until.metric, until.lower_is_better)
        return None

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
        if self.orphan_timeout <= 0:
            raise self._refuse("orphan_timeout", "give a time of more than 0.")
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
        if self.wire_dtype not in _WIRE_DTYPES:
            raise self._refuse("wire_dtype", "write fp32, bf16 or fp16.")
        if self.determinism == "exact" and self.wire_dtype != "fp32":
            raise self._refuse(
                "wire_dtype",
                "exact determinism needs gradients as they are, and this rounds them by rank, so "
                "give fp32, or --determinism fast.",
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
        if self.data is not None and not self.data.is_dir():
            raise self._refuse("data", "there is no such folder; give the one that holds the data.")
        if self.init_from is not None and not self.init_from.is_file():
            raise self._refuse("init_from", "there is no such file; give a .safetensors file.")
        for text in self.params:
            name, equals, _ = text.partition("=")
            if not equals or not name.isidentifier():
                raise ConfigError(
                    f"{self.where('params')} is {text!r}: write NAME=VALUE, as in --param lr=0.02."
                )


_NAMES = tuple(f.name for f in fields(TrainConfig) if f.name != "sources")
_HINTS = get_type_hints(TrainConfig)


def _kind(name: str) -> type:
    """The plain type of a field: ``int`` for ``int | None``, ``tuple`` for ``tuple[str, ...]``."""
    hint = _HINTS[name]
    if get_origin(hint) is tuple:
        return tuple
    kind: type = next((kind for kind in get_args(hint) if kind is not NoneType), hint)
    return kind


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
    return _with_endpoint(str(value), endpoint)


def find_parameters(argument: str | None) -> str | None:
    """Return the parameter store's URL, as ``find_objects`` finds the object store's."""
    value, _ = (argument, "") if argument else _setting("parameters") or (None, "")
    endpoint, _ = _setting("s3_endpoint") or (None, "")
    return None if value is None else _with_endpoint(str(value), endpoint)


def _setting(
    name: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> tuple[Any, str] | None:
    layer = from_file((folder or Path()) / CONFIG_FILE, _NAMES)
    layer |= from_environment(os.environ if environment is None else environment, _NAMES)
    return layer.get(name)


def _with_endpoint(url: str | None, given: str | None) -> str | None:
    endpoint = given or s3_endpoint()
    if url is None or endpoint is None or not url.startswith("s3://") or "endpoint=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}endpoint={quote(endpoint, safe=':/')}"
