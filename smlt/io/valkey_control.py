"""The small commands to a Redis or Valkey server, by redis-py, with its errors translated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from smlt._core.replies import ErrorReply, RespError
from smlt.io.server_address import ServerAddress

SCAN_COUNT = 1000

_SET_FIRST = """
if redis.call('EXISTS', KEYS[2]) == 0 then return false end
local stands = redis.call('GET', KEYS[1])
if stands then return stands end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if #ARGV > 2 then
  redis.call('XADD', KEYS[3], '*', unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
return ARGV[1]
"""


class ControlClient:
    """Raises ConnectionError or TimeoutError without a server, ErrorReply where it refuses.

    It never repeats anything by itself: who calls it knows how long to insist.
    """

    def __init__(self, address: ServerAddress, *, silence_s: float) -> None:
        self._redis = redis.asyncio.Redis(
            host=address.host,
            port=address.port,
            unix_socket_path=address.path or None,
            db=address.db,
            username=address.username or None,
            password=address.password or None,
            socket_timeout=silence_s,
            socket_connect_timeout=silence_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **tls_options(address),
        )

    async def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        await _translated(self._redis.set(key, value, px=ttl_ms))

    async def exists(self, key: str) -> bool:
        return bool(await _translated(self._redis.exists(key)))

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        found = await _translated(self._redis.mget(keys))
        if not isinstance(found, list) or len(found) != len(keys):
            raise RespError(f"MGET was answered with {found!r:.50}")
        return found

    async def set_first(
        self, keys: Sequence[str], value: bytes, ttl_ms: int, notice: Sequence[bytes]
    ) -> bytes | None:
        """Set the key unless somebody has; return what stands there, None without the guard.

        Args:
            keys: the key, its guard, and the stream of the notice.
            value: what to set.
            ttl_ms: life of the key, and of the stream.
            notice: names and values in turn; empty for no notice.
        """
        call = self._redis.eval(_SET_FIRST, len(keys), *keys, value, ttl_ms, *notice)
        stands = await _translated(call)
        if not isinstance(stands, bytes | None):
            raise RespError(f"EVAL was answered with {stands!r:.50}")
        return stands

    async def append(
        self, guard: str, stream: str, fields: Mapping[str, bytes], ttl_ms: int
    ) -> bytes | None:
        """Append a notice and return the guard's value, in one transaction."""
        transaction = self._redis.pipeline(transaction=True)
        transaction.get(guard)
        transaction.xadd(stream, dict(fields))  # type: ignore[arg-type]
        transaction.pexpire(stream, ttl_ms)
        marker, *_ = await _translated(transaction.execute())
        return cast("bytes | None", marker)

    async def sweep(self, prefix: str) -> None:
        """Unlink every key with the prefix, a few at a time, so that others are served between."""
        pattern = "".join(f"\\{char}" if char in "*?[]\\^" else char for char in prefix) + "*"
        cursor = 0
        while True:
            scan = self._redis.scan(cursor, match=pattern, count=SCAN_COUNT)
            cursor, keys = await _translated(scan)
            if keys:
                await _translated(self._redis.unlink(*keys))
            if not cursor:
                return

    async def close(self) -> None:
        await self._redis.aclose()


def tls_options(address: ServerAddress) -> dict[str, Any]:
    """Return what redis-py is told of TLS."""
    tls = address.tls
    if tls is None:
        return {}
    return {
        "ssl": True,
        "ssl_cert_reqs": tls.cert_reqs,
        "ssl_ca_certs": tls.ca_certs,
        "ssl_certfile": tls.certfile,
        "ssl_keyfile": tls.keyfile,
        "ssl_check_hostname": tls.check_hostname and tls.cert_reqs == "required",
    }


async def _translated(call: Awaitable[Any]) -> Any:
    try:
        return await _cancellable(call)
    except exceptions.OutOfMemoryError as exc:
        raise ErrorReply(f"OOM {exc}") from exc
    except exceptions.ReadOnlyError as exc:
        raise ErrorReply(f"READONLY {exc}") from exc
    except exceptions.MasterDownError as exc:
        raise ErrorReply(f"MASTERDOWN {exc}") from exc
    except exceptions.MovedError as exc:
        raise ErrorReply(f"MOVED {exc}") from exc
    except exceptions.AskError as exc:
        raise ErrorReply(f"ASK {exc}") from exc
    except exceptions.NoPermissionError as exc:
        raise ErrorReply(f"NOPERM {exc}") from exc
    except exceptions.TimeoutError as exc:
        raise TimeoutError(str(exc)) from exc
    except exceptions.ConnectionError as exc:
        raise ConnectionError(str(exc)) from exc
    except exceptions.RedisError as exc:
        raise ErrorReply(str(exc)) from exc
    except (TypeError, ValueError) as exc:
        raise RespError(str(exc)) from exc  # redis-py takes a reply to be well-formed


async def _cancellable(call: Awaitable[Any]) -> Any:
    """Await a call that may swallow its cancellation.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 returns as if nothing had
    been when it is cancelled at the moment at which it is done (CPython issue 86296).
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    result = await call
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
