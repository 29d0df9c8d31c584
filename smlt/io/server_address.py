"""Where a Redis or Valkey server is and how to get in: its URL, taken apart."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from smlt.errors import ConfigError
from smlt.io.secret import SecretAddress

_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_OPTIONS = (
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
)
# plaintext=true is for who sets up a job on AWS: that there is no TLS is meant.
_OPTIONS = ("db", "username", "password", "password_from", "cluster", "plaintext", *_TLS_OPTIONS)
_COMMA_IN_HOST = re.compile(r"\w+://([^/]*@)?[^/@?]*,")
_BETWEEN_SERVERS = re.compile(r",(?=\w+://)")


def server_urls(url: str) -> list[str]:
    """Return the URLs of several servers, which have commas between them.

    The options of the last one are also those of the others that have none of their own.
    """
    urls = _BETWEEN_SERVERS.split(url)
    _, mark, options = urls[-1].partition("?")
    return [one if "?" in one else f"{one}{mark}{options}" for one in urls]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """How the server's certificate is checked; names and meanings as in redis-py's URLs."""

    cert_reqs: str = "required"
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    check_hostname: bool = True

    def context(self) -> ssl.SSLContext:
        """Return the context that connections use.

        Raises:
            ConfigError: a certificate or key cannot be loaded.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
            if self.certfile:
                context.load_cert_chain(self.certfile, self.keyfile)
        except OSError as exc:
            files = " or ".join(f for f in (self.ca_certs, self.certfile, self.keyfile) if f)
            raise ConfigError(f"cannot load the TLS certificate {files}: {exc}") from exc
        context.check_hostname = self.check_hostname and self.cert_reqs == "required"
        context.verify_mode = _CERT_REQS[self.cert_reqs]
        return context


def without_password(url: str) -> str:
    """Return a URL, whole or not, as it may be shown."""
    return re.sub(r"//[^@/]*@|(?<=password=)[^&]*", "***", url)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """A server, by host and port or by the path of its unix socket."""

    url: str = field(repr=False)
    host: str = ""
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    secret: SecretAddress | None = None
    """Where the password is kept, if it does not stand in the URL."""
    tls: TlsOptions | None = None
    is_cluster: bool = False
    """It is one node of a cluster that knows the others."""

    @classmethod
    def parse(cls, url: str) -> ServerAddress:
        """Take apart ``redis://``, ``rediss://`` or ``unix://``.

        Raises:
            ConfigError: the URL has another scheme, no server, or an option that is unknown.
        """
        shown = without_password(url)
        if _COMMA_IN_HOST.match(url):
            raise ConfigError(f"{shown} is no server URL: write each in full, redis://a,redis://b")
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
            port = parts.port or 6379
        except ValueError as exc:
            raise ConfigError(f"{shown} is no server URL: {exc}") from exc
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ConfigError(f"{shown} is no server URL: it begins with redis, rediss or unix")
        for name in options:
            if name not in _OPTIONS or (name in _TLS_OPTIONS and parts.scheme != "rediss"):
                raise ConfigError(f"{shown} has an unknown option {name}")
        unix = parts.scheme == "unix"
        if unix and (parts.hostname or not parts.path):
            raise ConfigError(f"{shown} names no socket: write unix:///path/to.sock")
        if not unix and not parts.hostname:
            raise ConfigError(f"{shown} names no host: write redis://host:6379/0")
        secret = options.get("password_from")
        return cls(
            url=url,
            host=parts.hostname or "",
            port=port,
            path=unquote(parts.path) if unix else "",
            db=_database(options.get("db") or ("" if unix else parts.path.strip("/")), shown),
            username=unquote(parts.username or options.get("username", "")),
            password=unquote(parts.password or options.get("password", "")),
            secret=SecretAddress.parse(secret) if secret else None,
            tls=_tls(options, shown) if parts.scheme == "rediss" else None,
            is_cluster=_cluster(options, shown, unix),
        )

    def with_password(self) -> ServerAddress:
        """Return the address with the password that it only refers to. May block."""
        return self if self.secret is None else replace(self, password=self.secret.read())

    @property
    def masked(self) -> str:
        """The URL as messages show it, without password and options."""
        user = f"{quote(self.username)}:***@" if self.password else ""
        if self.path:
            return f"unix://{user}{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}/{self.db}"


def _database(text: str, url: str) -> int:
    try:
        return int(text or 0)
    except ValueError as exc:
        raise ConfigError(f"{url} has no database number but {text!r}") from exc


def _cluster(options: dict[str, str], url: str, unix: bool) -> bool:
    text = options.get("cluster", "false").lower()
    if text not in ("true", "false") or (text == "true" and unix):
        raise ConfigError(f"{url} has cluster={text}: it is true or false, and true only over TCP")
    return text == "true"


def _tls(options: dict[str, str], url: str) -> TlsOptions:
    cert_reqs = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if cert_reqs not in _CERT_REQS:
        raise ConfigError(f"{url} has ssl_cert_reqs={cert_reqs}: it is none, optional or required")
    return TlsOptions(
        cert_reqs=cert_reqs,
        ca_certs=options.get("ssl_ca_certs"),
        certfile=options.get("ssl_certfile"),
        keyfile=options.get("ssl_keyfile"),
        check_hostname=options.get("ssl_check_hostname", "true").lower() in ("true", "1", "yes"),
    )
