"""S3 servers for tests: moto's, one request at a time and with faults on request; localbucket."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

LIMIT_S = 20.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


_SESSION = b"""<CreateSessionResult><Credentials><SessionToken>token</SessionToken>
<SecretAccessKey>secret</SecretAccessKey><AccessKeyId>key</AccessKeyId>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"""
"""What directory buckets are used with; Moto has none."""


class _Quiet(WSGIRequestHandler):
    def log_request(self, *args: object) -> None:
        pass

    log = log_request


class Fault(Exception):
    """What a request is answered with instead, by its status and S3's code for it."""

    def __init__(self, status: int, code: str) -> None:
        self.status = status
        self.code = code


class CutError(Exception):
    """The connection is cut instead of an answer."""


class S3Server:
    """Moto behind a lock, since its conditional writes are not atomic between threads.

    ``before(method, path)`` and ``after(method, path)`` are called around each request and may
    raise Fault or CutError; a fault after the request has had its effect.
    """

    def __init__(self) -> None:
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.after: Callable[[str, str], None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet
        )
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> S3Server:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def client(self):
        return client_of(self.endpoint)

    def bucket(self, name: str) -> str:
        """Make a bucket, and return its URL."""
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(name, "us-east-1")
        return f"s3://{name}?endpoint={quote(self.endpoint, safe=':/')}"

    def heal(self) -> None:
        self.before = self.after = lambda method, path: None

    def _serve(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if environ["QUERY_STRING"].startswith("session"):
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [_SESSION]
        answer: list[object] = []

        def keep(*args: object) -> None:
            answer[:] = args

        with self._lock:
            self.requests.append((method, path))
            try:
                self.before(method, path)
                body = b"".join(self._moto(environ, keep))
                self.after(method, path)
            except Fault as fault:
                text = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>"
                start_response(f"{fault.status} Fault", [("Content-Type", "application/xml")])
                return [text.encode()]
            except CutError:
                # Closed for good, not only for writing: a client that still writes its body
                # would wait for us to read it.
                sock = environ["werkzeug.socket"]
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
                start_response("500 Cut", [])
                return []
        start_response(*answer)
        return [body]


class LocalBucket:
    """A server of another make, over a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._folder = folder

    def __enter__(self) -> LocalBucket:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "localbucket", "--port", str(self.port), str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + LIMIT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("localbucket does not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()

    def _accepts(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def bucket(self, name: str) -> str:
        """Make a bucket, and return its URL."""
        client_of(self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}?endpoint={quote(self.endpoint, safe=':/')}"


def client_of(endpoint: str):
    """An administrator's client, apart from the code under test."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
