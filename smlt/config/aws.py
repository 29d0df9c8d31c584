"""What AWS's own environment variables say to all programs alike."""

from __future__ import annotations

import os
from collections.abc import Mapping

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def s3_endpoint(environment: Mapping[str, str] | None = None) -> str | None:
    """Return where an S3-compatible service is, or None for AWS's own."""
    variables = os.environ if environment is None else environment
    return next((variables[name] for name in ENDPOINT_VARIABLES if variables.get(name)), None)
