"""The parameter store on a Redis or Valkey Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import redis.asyncio
from redis import exceptions
from redis.asyncio.cluster import ClusterNode

from smlt.errors import ConfigError, StoreUnreachableError
from smlt.io.parameter_store import Notice, ParameterStore, all_requests
from smlt.io.resp_connection import Connection
from smlt.io.resp_links import connect
from smlt.io.routed_store import RoutedStore
from smlt.io.server_address import ServerAddress
from smlt.io.server_errors import MovedError, ServerPatience
from smlt.io.valkey import ValkeyStore
from smlt.io.valkey_control import tls_options

T = TypeVar("T")

_MOST_MOVES = 5


class ClusterStore(RoutedStore):
    """Finds the node of a key's slot by redis-py's slot map, and is an ordinary store there.

    All keys of a generation carry one hash tag, so that a transaction, and a read of several
    streams, is a matter of one node. A slot that has moved is looked for again; while it is on its
    way, commands wait. Belongs to one event loop.
    """

    def __init__(
        self,
        address: ServerAddress,
        *,
        time_limit_s: float,
        dial: Callable[..., Awaitable[Connection]] = connect,
        threads: bool = False,
    ) -> None:
        self._address = address
        self._dial = dial
        self._threads = threads
        self._time_limit_s = time_limit_s
        self._patience = ServerPatience(address.masked, time_limit_s)
        self._nodes: dict[tuple[str, int], ValkeyStore] = {}
        self._map: redis.asyncio.RedisCluster | None = None
        self._looking = asyncio.Lock()

    @property
    def url(self) -> str:
        return self._address.url

    @property
    def requests(self) -> Mapping[str, int]:
        return all_requests(self._nodes.values())

    async def mark(self, guard: str, *, ttl_s: float) -> None:
        await self.at(guard, lambda node: node.mark(guard, ttl_s=ttl_s))

    async def check(self, guard: str) -> None:
        await self.at(guard, lambda node: node.check(guard))

    async def read(
        self, after: Mapping[str, str], *, wait_s: float, limit: int = 1000
    ) -> list[Notice]:
        stream = next(iter(after))
        return await self.at(stream, lambda node: node.read(after, wait_s=wait_s, limit=limit))

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        return [value for same in _by_tag(keys) for value in await self._values(same)]

    async def _values(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.at(keys[0], lambda node: node.values(keys))

    async def discard(self, keys: Sequence[str]) -> None:
        for same in _by_tag(keys):
            await self._discard(same)

    async def _discard(self, keys: Sequence[str]) -> None:
        await self.at(keys[0], lambda node: node.discard(keys))

    async def sweep(self, prefix: str) -> None:
        for node in (await self._slots()).get_primaries():
            await self._node(node).sweep(prefix)

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.close()
        self._nodes.clear()
        await self._forget()

    async def at(self, key: str, call: Callable[[ParameterStore], Awaitable[T]]) -> T:
        """Call the node that has the key's slot."""
        for _ in range(_MOST_MOVES):
            node = (await self._slots()).get_node_from_key(key)
            if node is None:
                raise StoreUnreachableError(
                    f"the cluster {self._address.masked} has no node for the slot of {key}"
                )
            try:
                return await call(self._node(node))
            except MovedError:
                await self._forget()
            except StoreUnreachableError:
                await self._forget()  # a replica may have taken its place: the next call sees it
                raise
        raise StoreUnreachableError(
            f"the cluster {self._address.masked} sends {key} from one node to another"
        )

    def _node(self, node: ClusterNode) -> ValkeyStore:
        place = (str(node.host), int(node.port))
        if place not in self._nodes:
            address = replace(self._address, host=place[0], port=place[1])
            self._nodes[place] = ValkeyStore(
                address,
                time_limit_s=self._time_limit_s,
                dial=self._dial,
                threads=self._threads,
            )
        return self._nodes[place]

    async def _slots(self) -> redis.asyncio.RedisCluster:
        async with self._looking:
            if self._map is None:
                self._map = await self._patience.insist(self._look)
            return self._map

    async def _look(self) -> redis.asyncio.RedisCluster:
        address, silence_s = self._address, self._patience.silence_s
        slots = redis.asyncio.RedisCluster(
            host=address.host,
            port=address.port,
            username=address.username or None,
            password=address.password or None,
            socket_timeout=silence_s,
            socket_connect_timeout=silence_s,
            protocol=2,
            **tls_options(address),
        )
        try:
            await slots.initialize()
        except exceptions.RedisClusterException as exc:
            await slots.aclose()
            if "not enabled" in str(exc):
                raise ConfigError(
                    f"{address.masked} is no cluster: leave cluster=true out of its URL"
                ) from exc
            raise ConnectionError(str(exc)) from exc
        except exceptions.RedisError as exc:
            await slots.aclose()
            raise ConnectionError(str(exc)) from exc
        return slots

    async def _forget(self) -> None:
        slots, self._map = self._map, None
        if slots is not None:
            await slots.aclose()


def _by_tag(keys: Sequence[str]) -> list[list[str]]:
    """Cut a list where the hash tag changes: one command is for one slot."""
    groups: list[list[str]] = []
    for key in keys:
        if groups and _tag(groups[-1][0]) == _tag(key):
            groups[-1].append(key)
        else:
            groups.append([key])
    return groups


def _tag(key: str) -> str:
    _, brace, rest = key.partition("{")
    tag, closing, _ = rest.partition("}")
    return tag if brace and closing and tag else key
