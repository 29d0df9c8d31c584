"""What AWS says when it refuses a call, turned once into a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto

from smlt.errors import CloudError, ConfigError

_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
_STRANGER = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "RequestExpired",
}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise what boto raises as one of smlt's errors.

    Args:
        doing: what was tried, as in "invoking smlt-a-1769", to begin the sentence with.
    """
    try:
        yield
    except boto.ClientError as exc:
        raise _refusal(doing, exc) from exc
    except _NO_CREDENTIALS as exc:
        raise ConfigError(
            f"{doing} failed: there are no AWS credentials ({exc}); set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
        ) from exc
    except boto.NoRegionError as exc:
        raise ConfigError(
            f"{doing} failed: no region is named; set AWS_REGION, or region in [aws] of smlt.toml"
        ) from exc
    except boto.ConnectionError as exc:
        raise CloudError(f"{doing} failed: {exc}: look at the network, and at the region") from exc
    except (boto.BotoCoreError, boto.HTTPClientError) as exc:
        raise CloudError(f"{doing} failed: {exc}") from exc


def code_of(exc: boto.ClientError) -> str:
    """AWS's name of the error."""
    return str(exc.response.get("Error", {}).get("Code", "?"))


def _refusal(doing: str, exc: boto.ClientError) -> CloudError | ConfigError:
    code = code_of(exc)
    message = exc.response.get("Error", {}).get("Message", "")
    if code in _DENIED:
        return ConfigError(
            f"{doing} failed: your AWS credentials do not allow {exc.operation_name} ({message}); "
            "let their policy allow it, or use others"
        )
    if code in _STRANGER:
        return ConfigError(
            f"{doing} failed: AWS does not accept the credentials ({code}): renew or correct them"
        )
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 or "Throttl" in code or code == "TooManyRequestsException":
        return CloudError(f"{doing} failed: {code}: {message}: AWS is too busy, try again later")
    return CloudError(f"{doing} failed: {code}: {message}")
