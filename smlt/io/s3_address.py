"""Where a bucket is: its URL, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from smlt.errors import ConfigError

# General purpose and directory buckets, in both of AWS's and in compatible services' rules.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_DIRECTORY_BUCKET = "--x-s3"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Address:
    """A bucket, and what the names of all our objects in it begin with."""

    bucket: str
    prefix: str = ""
    """Without a slash at either end."""
    endpoint: str | None = None
    """Of an S3-compatible service; None is AWS."""
    region: str | None = None

    @classmethod
    def parse(cls, url: str, *, endpoint: str | None = None) -> S3Address:
        """Take apart ``s3://bucket/prefix[?endpoint=http://host:9000][&region=…]``.

        Args:
            url: as above.
            endpoint: where the URL names none.

        Raises:
            ConfigError: there is no bucket of such a name, or the URL has an unknown option.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
        except ValueError as exc:
            raise ConfigError(f"{url} is no S3 URL: {exc}") from exc
        if parts.scheme != "s3" or not _BUCKET.fullmatch(parts.netloc):
            raise ConfigError(
                f"{url} names no bucket: write s3://bucket/prefix, the bucket in 3 to 63 small"
                " letters, digits, dots and hyphens"
            )
        for name in options:
            if name not in ("endpoint", "region"):
                raise ConfigError(f"{url} has an unknown option {name}")
        prefix = parts.path.strip("/")
        if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
            raise ConfigError(f"{url} has an empty, . or .. part in its prefix")
        endpoint = options.get("endpoint") or endpoint
        if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
            raise ConfigError(f"the S3 endpoint {endpoint!r} is no URL: write http://host:9000")
        return cls(
            bucket=parts.netloc, prefix=prefix, endpoint=endpoint, region=options.get("region")
        )

    @property
    def url(self) -> str:
        """What leads to the same bucket from another process."""
        options = {"endpoint": self.endpoint, "region": self.region}
        query = urlencode({k: v for k, v in options.items() if v}, quote_via=quote, safe=":/")
        return self.shown + (f"?{query}" if query else "")

    @property
    def shown(self) -> str:
        """The URL as messages show it."""
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def is_directory_bucket(self) -> bool:
        """S3 Express: it lists directories only, and in no order."""
        return self.bucket.endswith(_DIRECTORY_BUCKET)

    def name(self, key: str) -> str:
        """What S3 calls the object of one of our keys."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def key(self, name: str) -> str:
        """Our key of an object below the prefix."""
        return name[len(self.prefix) + 1 :] if self.prefix else name
