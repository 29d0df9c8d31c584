"""What the process groups of one process share: session, event loop and rendezvous Store.

On Lambda no rank can be reached by another, so that rendezvous, too, goes through the parameter
store; ``env://`` would need a port.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import sys
from collections import Counter
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from torch import distributed
from torch._C._distributed_c10d import Store

from smlt.aggregation.async_aggregator import open_session
from smlt.aggregation.background import EventLoopThread
from smlt.aggregation.group import Group
from smlt.aggregation.options import positive
from smlt.aggregation.session_settings import SessionLimits, SessionSpec
from smlt.aggregation.store_log import StoreLog
from smlt.config.sharding import is_open, sharding
from smlt.errors import ConfigError
from smlt.io.server_address import without_password

PREFIX = "smlt+"
SCHEMES = ("redis", "rediss", "unix", "s3", "memory")

# A bucket of DDP has 25 MB: a few overlap.
_LANES = 4
_NUMBERS: dict[str, type[int] | type[float]] = {
    "rank": int, "world_size": int, "aggregators": int, "shard_mb": float, "lease_s": float,
}  # fmt: skip
_OURS = ("job", "pickle", *_NUMBERS)


# torch holds no more than the C++ half of a Store, which is nothing without its Python half.
_OPEN: dict[World, ParameterStoreStore] = {}


@atexit.register
def _close_all() -> None:
    """Leave what the script did not destroy, lest the others wait for a lease to run out."""
    # What ended the interpreter, if it was an exception.
    error: BaseException | None = getattr(sys, "last_value", None)
    for world in list(_OPEN):
        world.close(error)


class World:
    """A rank's session and what hangs on it; closed with the last group."""

    def __init__(self, url: str, options: dict[str, str], limit_s: float) -> None:
        self.rank = int(options["rank"])
        self.world_size = int(options["world_size"])
        self.trusts_pickle = options.get("pickle") == "true"
        """Objects of other ranks may be of any class, and run code of theirs."""
        shard_mb = None
        if "shard_mb" in options:
            shard_mb = positive("shard_mb", float(options["shard_mb"]))
        owners = int(options["aggregators"]) if "aggregators" in options else None
        shard_bytes, aggregators = sharding(
            url, self.world_size, shard_mb=shard_mb, aggregators=owners
        )
        spec = SessionSpec(
            world_size=self.world_size,
            shard_bytes=shard_bytes,
            aggregators=aggregators,
            lanes=_LANES,
            tries_plans=is_open(url, shard_mb=shard_mb, aggregators=owners),
        )
        lease_s = float(options["lease_s"]) if "lease_s" in options else None
        limits = SessionLimits.of(
            url,
            positive("timeout", limit_s),
            None if lease_s is None else positive("lease_s", lease_s),
        )
        self.thread = EventLoopThread(f"smlt-torch-{self.rank}")
        self._session = open_session(url, options["job"], self.rank, spec, limits)
        self._resources = contextlib.AsyncExitStack()
        self._open_groups = 0
        self._names: Counter[str] = Counter()
        self.log: StoreLog

    def open(self) -> None:
        """Join the job, and return when all ranks have."""
        with contextlib.ExitStack() as resources:
            resources.enter_context(self.thread)
            self.thread.call(self._open())
            resources.pop_all()

    async def _open(self) -> None:
        async with contextlib.AsyncExitStack() as resources:
            await resources.enter_async_context(self._session.store)
            await resources.enter_async_context(self._session)
            await self._session.formed()
            self.log = StoreLog(self._session.store, self._session.seat.keys)
            self._session.on_failure.append(self.log.fail)
            replaying = asyncio.create_task(self.log.run())
            resources.callback(replaying.cancel)
            self._resources = resources.pop_all()

    def close(self, error: BaseException | None = None) -> None:
        """Leave the job; because of an error, which ends it for all ranks. Idempotent."""
        resources, self._resources = self._resources, contextlib.AsyncExitStack()
        if self.thread.runs:
            kind = None if error is None else type(error)
            self.thread.call(resources.__aexit__(kind, error, None))
        self.thread.__exit__(None, None, None)
        _OPEN.pop(self, None)

    def open_group(self, name: str, rank: int, world_size: int, limit_s: float) -> Group:
        """Return a running group of some ranks; the members open their groups in one order."""
        # torch gives the names of destroyed groups again; their frames must not come back.
        self._names[name] += 1
        lane = f"{name}.{self._names[name]}." if self._names.total() > 1 else ""
        group = Group(self._session, name=lane, rank=rank, world_size=world_size, limit_s=limit_s)
        self.thread.call(group.__aenter__())
        self._open_groups += 1
        return group

    def close_group(self, group: Group) -> None:
        self.thread.call(group.__aexit__())
        self._open_groups -= 1
        if not self._open_groups:
            self.close()


class ParameterStoreStore(Store):
    """A ``torch.distributed`` Store in the job's parameter store."""

    def __init__(self, world: World, limit_s: float) -> None:
        super().__init__()
        self.world = world
        self.set_timeout(timedelta(seconds=limit_s))

    def set(self, key: str, value: str | bytes) -> None:
        self._change("set", key, _bytes(value))

    def get(self, key: str) -> bytes:
        return self._wait([key])[0]

    def add(self, key: str, value: int) -> int:
        return int(self._change("add", key, b"%d" % value))

    def check(self, keys: list[str]) -> bool:
        # A change that another rank has completed is in the log: replay up to here.
        self._change("delete", "")
        return all(key in self.world.log.values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._wait(keys, timeout)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return self._change("compare_set", key, _bytes(desired), _bytes(expected))

    def append(self, key: str, value: str | bytes) -> None:
        self._change("append", key, _bytes(value))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return self._wait(keys)

    def multi_set(self, keys: list[str], values: list[str | bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete_key(self, key: str) -> bool:
        return bool(self._change("delete", key))

    def num_keys(self) -> int:
        self._change("delete", "")
        return len(self.world.log.values)

    def has_extended_api(self) -> bool:
        return True

    # torch's C++ side looks for these two under its own names.
    deleteKey = delete_key
    getNumKeys = num_keys

    def clone(self) -> ParameterStoreStore:
        return self

    def _change(self, verb: str, key: str, value: bytes = b"", expected: bytes = b"") -> bytes:
        return self.world.thread.call(self.world.log.change(verb, key, value, expected))

    def _wait(self, keys: list[str], timeout: timedelta | None = None) -> list[bytes]:
        # torch keeps a Store's own limit in its C++ half.
        limit = self.timeout if timeout is None else timeout  # type: ignore[attr-defined]
        limit_s = limit.total_seconds()
        try:
            return self.world.thread.call(self.world.log.wait(keys, limit_s))
        except TimeoutError:
            raise distributed.DistStoreError(
                f"wait timeout after {limit_s:g} s: no rank has set {', '.join(keys)}"
            ) from None


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def parse(init_method: str) -> tuple[str, dict[str, str]]:
    """Return the parameter store's URL and the options that are for us.

    Raises:
        ConfigError: job, rank or world size is missing, or no number.
    """
    shown = without_password(init_method.partition("?")[0])
    parts = urlsplit(init_method.removeprefix(PREFIX))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    options = {name: query.pop(name) for name in _OURS if name in query}
    for name in ("job", "rank", "world_size"):
        if not options.get(name):
            raise ConfigError(
                f"init_method {shown} lacks {name}: write init_process_group('smlt',"
                " init_method='smlt+redis://host:6379/0?job=name', rank=…, world_size=…)"
            )
    if options.get("pickle", "false") not in ("true", "false"):
        raise ConfigError(f"init_method {shown} has pickle={options['pickle']}: say true or false")
    try:
        for name in options.keys() & _NUMBERS.keys():
            _NUMBERS[name](options[name])
    except ValueError as exc:
        kind = "number" if _NUMBERS[name] is float else "whole number"
        raise ConfigError(f"init_method {shown} has {name}={options[name]}: no {kind}") from exc
    place = f"//{parts.netloc}{parts.path}"
    store_query = f"?{urlencode(query)}" if query else ""
    return f"{parts.scheme}:{place}{store_query}", options | {"job": unquote(options["job"])}


def rendezvous(init_method: str, timeout: timedelta, **_: Any) -> Any:
    """Yield Store, rank and world size; a handler for ``torch.distributed.rendezvous``."""
    url, options = parse(init_method)
    limit_s = timeout.total_seconds()
    world = World(url, options, limit_s)
    world.open()
    store = ParameterStoreStore(world, limit_s)
    _OPEN[world] = store
    yield store, world.rank, world.world_size
    raise RuntimeError("a job's ranks meet once: smlt does not support to meet again")
