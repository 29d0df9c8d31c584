"""What to do about S3's failures: try again, and for how long, or say what is wrong."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import aiohttp
from botocore import exceptions as boto

from smlt.errors import (
    ConfigError,
    NotFoundError,
    PreconditionError,
    SmltError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from smlt.io.s3_address import S3Address

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

FOREIGN = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, OSError)
"""All that a call may raise. A body that is cut short is raised by aiohttp itself."""

_MISSING = {"404", "NoSuchKey", "NoSuchUpload"}
_LOST = {"412", "PreconditionFailed"}
_BUSY = {"409", "ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown"}
_FULL = {"507", "QuotaExceeded", "StorageFull", "XMinioStorageFull", "EntityTooLarge"}
_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"}
_STRANGER = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
}
_ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed"}
_BEHIND = {"416", "InvalidRange"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
_UNREACHED = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError)


class BehindEndError(StoreError):
    """A range begins where the object has ended."""


class Attempts:
    """One call to S3, made again while it fails for a passing reason and its time lasts."""

    def __init__(
        self,
        address: S3Address,
        doing: str,
        limit_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._where = f"cannot {doing} in {address.shown}"
        self._address = address
        self._limit_s = limit_s
        self._clock = clock
        self._chance = chance
        self._since = clock()
        self._pause_s = FIRST_PAUSE_S

    def pause(self, exc: Exception) -> float:
        """Return how many seconds to wait before the next attempt.

        Raises:
            SmltError: there shall be none; the error says why.
        """
        if not _passes(exc):
            raise self._translated(exc) from exc
        left_s = self._since + self._limit_s - self._clock()
        if left_s <= 0:
            raise StoreUnreachableError(
                f"{self._where}: {self._service} does not do it within {self._limit_s:g} s:"
                f" {_reason(exc)}"
            ) from exc
        # A random part of it, or all workers would come back together.
        pause_s = self._pause_s * (0.5 + 0.5 * self._chance())
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return min(pause_s, left_s)

    @property
    def _service(self) -> str:
        return self._address.endpoint or "S3"

    def _translated(self, exc: Exception) -> SmltError:
        if isinstance(exc, _NO_CREDENTIALS):
            return ConfigError(
                f"{self._where}: there are no AWS credentials ({exc}); set AWS_PROFILE, or"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
            )
        if isinstance(exc, boto.ClientError):
            return self._refusal(exc)
        if isinstance(exc, boto.SSLError):
            return ConfigError(f"{self._service} cannot be trusted over TLS: {exc}")
        return StoreError(f"{self._where}: {exc}")

    def _refusal(self, exc: boto.ClientError) -> SmltError:
        code, message = code_of(exc), exc.response.get("Error", {}).get("Message", "")
        if code in _MISSING:
            return NotFoundError(f"{self._where}: there is no such object")
        if code in _BEHIND:
            return BehindEndError(f"{self._where}: the object is shorter")
        if code in _LOST:
            return PreconditionError(f"{self._where}: another writer came first")
        if code == "NoSuchBucket":
            return ConfigError(
                f"there is no bucket {self._address.bucket} at {self._service}: create it, or"
                " correct its name"
            )
        if code in _STRANGER:
            return ConfigError(
                f"{self._where}: {self._service} does not accept the credentials ({code}):"
                " renew or correct them"
            )
        if code in _DENIED:
            return ConfigError(
                f"{self._where}: access is denied; the credentials need s3:GetObject, PutObject"
                " and DeleteObject below that prefix, and s3:ListBucket"
            )
        if code in _ELSEWHERE:
            return ConfigError(
                f"{self._where}: the bucket is in another region; add ?region=… to its URL"
            )
        if code in _FULL:
            return StoreFullError(f"{self._where}: there is no room for it ({code})")
        return StoreError(f"{self._where}: it was refused with {code}: {message}")


def code_of(exc: boto.ClientError) -> str:
    """What S3 calls the error; the answer to a HEAD has only a status."""
    return str(exc.response.get("Error", {}).get("Code", "?"))


def _passes(exc: Exception) -> bool:
    if isinstance(exc, boto.ClientError):
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = code_of(exc)
        if code in _FULL:
            return False
        return status >= 500 or status == 429 or code in _BUSY or "Throttl" in code
    if isinstance(exc, boto.SSLError):
        return "certificate" not in str(exc).lower()
    return isinstance(exc, (*_UNREACHED, aiohttp.ClientError, OSError))


def _reason(exc: Exception) -> str:
    if isinstance(exc, boto.ClientError):
        return f"it answers {code_of(exc)}"
    if isinstance(exc, boto.ConnectTimeoutError | boto.ReadTimeoutError | TimeoutError):
        return "it does not answer"
    if isinstance(exc, boto.EndpointConnectionError):
        return "no connection can be made"
    return str(exc) or type(exc).__name__
