"""From a URL to a store."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from smlt.config.aws import s3_endpoint
from smlt.errors import ConfigError
from smlt.io.cluster import ClusterStore
from smlt.io.directory import DirectoryStore
from smlt.io.link_rate import LinkRate, take_rate
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.object_store import ObjectStore
from smlt.io.parameter_store import ParameterStore
from smlt.io.resp_links import connect
from smlt.io.s3_address import S3Address
from smlt.io.server_address import ServerAddress, server_urls
from smlt.io.server_group import ServerGroup
from smlt.io.valkey import ValkeyStore

if TYPE_CHECKING:
    from smlt.io.s3 import S3ObjectStore
    from smlt.io.s3_parameters import S3ParameterStore


def open_parameter_store(url: str, *, time_limit_s: float) -> ParameterStore:
    """Return the parameter store of a URL; it connects when it is first used.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` (TLS), with
            ``?cluster=true`` for any node of a cluster, ``?password_from=secretsmanager:NAME``
            (or ``ssm:/NAME``, ``env:VARIABLE``) for a password that is kept elsewhere,
            ``unix:///path/to.sock[?db=0]``, several of these with commas between them (the last
            one's options hold for those without any), ``s3://bucket/prefix`` as for an object
            store, or ``memory://name``. With ``link_mbps=20`` among the last one's options, no more
            than so many megabytes a second go either way.
        time_limit_s: how long a server may fail to answer before it counts as unreachable.

    Raises:
        ConfigError: the URL names no store that exists, or an option that is unknown.
    """
    url, link = take_rate(url)
    scheme, _, rest = url.partition("://")
    if scheme == "s3":
        return _s3_parameters(url, time_limit_s, link)
    if scheme == "memory" and rest:
        if link is not None:
            raise ConfigError("memory:// has no link that could be slow: leave link_mbps out")
        return MemoryParameterStore(rest)
    if scheme in ("redis", "rediss", "unix"):
        addresses = [ServerAddress.parse(one).with_password() for one in server_urls(url)]
        dial = partial(connect, link=link)
        servers = [
            (ClusterStore if each.is_cluster else ValkeyStore)(
                each, time_limit_s=time_limit_s, dial=dial, threads=link is None
            )
            for each in addresses
        ]
        return servers[0] if len(servers) == 1 else ServerGroup(url, servers)
    raise ConfigError(
        f"{url!r} is no parameter store: give redis://host:6379/0, rediss://host:6379/0,"
        " unix:///path/to.sock, several of these with commas between them,"
        " s3://bucket/prefix or memory://name"
    )


def open_object_store(url: str) -> ObjectStore:
    """Return the object store of a URL; it connects when it is first used.

    Args:
        url: ``s3://bucket/prefix[?endpoint=http://host:9000][&region=…]``,
            ``file:///absolute/path`` or ``memory://name``.

    Raises:
        ConfigError: the URL names no store that exists.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return _s3_store(S3Address.parse(url, endpoint=s3_endpoint()))
    if parts.scheme == "memory" and parts.netloc:
        return MemoryObjectStore(url.partition("://")[2])
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return DirectoryStore(unquote(parts.path))
    raise ConfigError(
        f"{url!r} is no object store: give s3://bucket/prefix, file:///absolute/path or"
        " memory://name"
    )


# Imported when they are needed: boto takes longer to load than all of a worker's other parts.
def _s3_store(address: S3Address) -> S3ObjectStore:
    store: type[S3ObjectStore] = import_module("smlt.io.s3").S3ObjectStore
    return store(address)


def _s3_parameters(url: str, time_limit_s: float, link: LinkRate | None) -> S3ParameterStore:
    store: type[S3ParameterStore] = import_module("smlt.io.s3_parameters").S3ParameterStore
    address = S3Address.parse(url, endpoint=s3_endpoint())
    return store(address, time_limit_s=time_limit_s, link=link)
