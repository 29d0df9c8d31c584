"""Refusals in the shape that botocore parses: a type, an HTTP status and a message."""

from smlt.errors import CloudError


class ApiError(CloudError):
    """A refused call. `kind` becomes the error code that boto3's ClientError carries."""

    def __init__(self, kind: str, status: int, message: str, **fields: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.message = message
        self.fields = fields


def invalid(message: str) -> ApiError:
    return ApiError("InvalidParameterValueException", 400, message)


def not_found(message: str) -> ApiError:
    return ApiError("ResourceNotFoundException", 404, message)


def conflict(message: str) -> ApiError:
    return ApiError("ResourceConflictException", 409, message)


def too_large(message: str) -> ApiError:
    return ApiError("RequestTooLargeException", 413, message)


def throttled(reason: str) -> ApiError:
    return ApiError("TooManyRequestsException", 429, "Rate Exceeded.", Reason=reason)
