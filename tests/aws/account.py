"""An AWS account on this machine, behind one endpoint: moto's, with functions that really run.

What moto cannot do is done by the embedded Lambda: a version that is published here is published
there too, with its layers unpacked beside its code, and invocations and their logs are its. So smlt
runs the very code that it runs against AWS, and is told nothing but ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs

import boto3
import botocore.session
from botocore.config import Config
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from smlt.embedded import EmbeddedCloud

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    # As AWS's own tools have it; boto knows only AWS_DEFAULT_REGION.
    "AWS_REGION": "us-east-1",
}
REGION = "us-east-1"
ACCOUNT = DEFAULT_ACCOUNT_ID
_SERVICE = re.compile(r"Credential=[^/]+/\d+/([^/]+)/([^/]+)/aws4_request")
PYTHON = f"python3.{sys.version_info.minor}"
HANDLER = "smlt.worker.handler.handler"
_COPIED = ("Runtime", "Role", "Handler", "Timeout", "MemorySize", "EphemeralStorage")


class Fault(Exception):
    """What a call is answered with instead: a status and AWS's code for it, or silence."""

    def __init__(self, status: int = 0, code: str = "") -> None:
        self.status = status
        self.code = code


THROTTLED = Fault(429, "ThrottlingException")
BROKEN = Fault(500, "InternalFailure")
DENIED = Fault(403, "AccessDeniedException")
CUT = Fault()
SILENT = Fault(code="silent")
_SILENCE_S = 3.0


class _Quiet(WSGIRequestHandler):
    def log_request(self, *args: object) -> None:
        pass

    log = log_request


class AwsAccount:
    """``before(service, operation)`` is called for each call, and may raise a Fault."""

    def __init__(self, cloud: EmbeddedCloud, folder: Path) -> None:
        self.calls: list[tuple[str, str]] = []
        self.puts: list[str] = []
        """What has been written into buckets, part by part."""
        self.before = lambda service, operation: None
        self.recursion: dict[str, str] = {}
        self.bodies: list[str] = []
        """What has been sent to Lambda: settings and payloads."""
        self.images: Path | None = None
        """Where what images were built from lies, in a folder for each tag."""
        self.function_variables: dict[str, str] = {}
        """What functions see beside their own settings, as if Lambda set it."""
        self._cloud = cloud
        self.folder = folder
        """Visible to functions."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._layers: dict[str, tuple[str, str]] = {}
        self._code: dict[str, tuple[str, ...]] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._operations = _lambda_operations()
        self._server = make_server(
            "127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet
        )
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.embedded = boto3.client("lambda", **_options(cloud.endpoint))

    def __enter__(self) -> AwsAccount:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def say(self, what: str):
        """What the service of functions says of itself: its ``environments`` or its ``bill``."""
        with urllib.request.urlopen(f"{self._cloud.endpoint}/_smlt/{what}", timeout=10) as answer:
            return json.loads(answer.read())

    @property
    def variables(self) -> dict[str, str]:
        """What smlt's environment must say."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self, service: str):
        """An administrator's client, apart from the code under test."""
        return boto3.client(service, **_options(self.endpoint))

    def heal(self) -> None:
        self.before = lambda service, operation: None

    def _serve(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        scope = _SERVICE.search(environ.get("HTTP_AUTHORIZATION", ""))
        service = scope[2] if scope else "s3"
        operation = self._operation(service, environ, body)
        self.calls.append((service, operation))
        if service == "s3" and operation == "PUT":
            self.puts.append(environ["PATH_INFO"])
        if service == "lambda":
            self.bodies.append(body.decode("latin-1"))
        try:
            self.before(service, operation)
        except Fault as fault:
            return _refuse(environ, start_response, service, fault)
        if (service, operation) in _EMBEDDED:
            return self._forward(environ, start_response, operation, body)
        if operation == "PutFunctionRecursionConfig":
            name = environ["PATH_INFO"].split("/")[3]
            self.recursion[name] = json.loads(body)["RecursiveLoop"]
            return _json(start_response, {"RecursiveLoop": self.recursion[name]})
        answer: list[object] = []
        with self._lock:
            environ["wsgi.input"] = io.BytesIO(body)
            made = b"".join(self._moto(environ, lambda *args: answer.extend(args)))
        if service == "lambda" and str(answer[0]).startswith("2"):
            self._follow(operation, environ, json.loads(body or b"{}"), json.loads(made or b"{}"))
        start_response(*answer)
        return [made]

    def _operation(self, service: str, environ, body: bytes) -> str:
        if "HTTP_X_AMZ_TARGET" in environ:
            return environ["HTTP_X_AMZ_TARGET"].rpartition(".")[2]
        if service == "lambda":
            path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
            matches = (n for n, m, p in self._operations if m == method and p.fullmatch(path))
            return next(matches, f"{method} {path}")
        if service == "s3":
            return environ["REQUEST_METHOD"]
        return parse_qs(body.decode()).get("Action", ["?"])[0]

    def _follow(self, operation: str, environ, asked, made) -> None:
        """Do to the embedded Lambda what has been done to moto's."""
        name = environ["PATH_INFO"].rstrip("/").split("/")[3:4]
        if operation == "PublishLayerVersion":
            content = asked["Content"]
            self._layers[made["LayerVersionArn"]] = content["S3Bucket"], content["S3Key"]
        elif operation == "CreateFunction" and "ZipFile" not in asked["Code"]:
            self._code[asked["FunctionName"]] = _place(asked["Code"])
        elif operation == "UpdateFunctionCode":
            self._code[name[0]] = _place(asked)
        elif operation == "PublishVersion":
            self._versions[name[0], made["Version"]] = self._publish(name[0])
        elif operation == "PutFunctionEventInvokeConfig":
            qualifier = parse_qs(environ["QUERY_STRING"])["Qualifier"][0]
            self.embedded.put_function_event_invoke_config(
                FunctionName=name[0], Qualifier=self._versions[name[0], qualifier], **asked
            )
        elif operation == "DeleteFunction" and name[0] in self._code:
            self.embedded.delete_function(FunctionName=name[0])
            del self._code[name[0]]

    def _publish(self, name: str) -> str:
        found = self.client("lambda").get_function_configuration(FunctionName=name)
        settings = {key: found[key] for key in _COPIED if key in found}
        settings = {"Runtime": PYTHON, "Handler": HANDLER} | settings
        variables = found.get("Environment", {}).get("Variables", {}) | self.function_variables
        settings["Environment"] = {"Variables": variables}
        layers = [self._layers[layer["Arn"]] for layer in found.get("Layers", ())]
        code = self._image(*self._code[name]) if len(self._code[name]) == 1 else None
        code = code or self._unpacked(self._code[name], layers)
        existing = [f["FunctionName"] for f in self.embedded.list_functions()["Functions"]]
        if name in existing:
            self.embedded.update_function_code(FunctionName=name, ZipFile=code)
            self.embedded.update_function_configuration(FunctionName=name, **settings)
        else:
            self.embedded.create_function(FunctionName=name, Code={"ZipFile": code}, **settings)
        return self.embedded.publish_version(FunctionName=name)["Version"]

    def _unpacked(self, code: tuple[str, str], layers: list[tuple[str, str]]) -> bytes:
        """One zip of a function's code and what its layers bring."""
        s3, buffer = self.client("s3"), io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as whole:
            for bucket, key in (*layers, code):
                body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                with zipfile.ZipFile(io.BytesIO(body)) as archive:
                    for member in archive.namelist():
                        whole.writestr(member.removeprefix("python/"), archive.read(member))
        return buffer.getvalue()

    def _image(self, uri: str) -> bytes:
        """What the image of a Dockerfile would have in the folder of the function's code."""
        context, buffer = self.images / uri.rpartition(":")[2], io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as whole:
            for line in (context / "Dockerfile").read_text().splitlines():
                if line.startswith("COPY"):
                    folder = context / line.split()[1]
                    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                        whole.write(path, path.relative_to(folder))
        return buffer.getvalue()

    def _forward(self, environ, start_response, operation: str, body: bytes):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if operation == "Invoke":
            name, qualifier = path.split("/")[3], parse_qs(query)["Qualifier"][0]
            query = f"Qualifier={self._versions[name, qualifier]}"
        headers = {
            name[5:].replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_X_AMZ")
        }
        url = f"{self._cloud.endpoint}{path}{'?' if query else ''}{query}"
        request = urllib.request.Request(
            url, body or None, headers, method=environ["REQUEST_METHOD"]
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, got, content = response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, got, content = error.code, error.headers, error.read()
        kept = [(k, v) for k, v in got.items() if k.lower().startswith(("x-amz", "content-type"))]
        start_response(f"{status} Answer", kept)
        return [content]


_EMBEDDED = {
    ("lambda", "Invoke"),
    ("lambda", "GetAccountSettings"),
    ("logs", "FilterLogEvents"),
    ("logs", "GetLogEvents"),
}


def _place(code: dict[str, str]) -> tuple[str, ...]:
    if "ImageUri" in code:
        return (code["ImageUri"],)
    return code["S3Bucket"], code["S3Key"]


@contextmanager
def aws_account(folder: Path, **options):
    """An account whose functions run below a folder."""
    with asyncio.Runner() as runner:
        cloud = EmbeddedCloud(
            folder,
            parameter_store=False,
            env=os.environ | CREDENTIALS,
            # Layers are in S3 there, and here part of the code.
            options=("--zip-limit", "250"),
            **options,
        )
        runner.run(cloud.__aenter__())
        try:
            with AwsAccount(cloud, folder) as account:
                yield account
        finally:
            runner.run(cloud.__aexit__(None, None, None))


def _options(endpoint: str) -> dict[str, object]:
    return {
        "endpoint_url": endpoint,
        "region_name": REGION,
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "config": Config(retries={"total_max_attempts": 1}),
    }


def _lambda_operations() -> list[tuple[str, str, re.Pattern[str]]]:
    model = botocore.session.get_session().get_service_model("lambda")
    found = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        pattern = re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(http["requestUri"].rstrip("/")))
        found.append((name, http["method"], re.compile(pattern + "/?")))
    return found


def _json(start_response, plain, status: str = "200 OK", headers=()):
    start_response(status, [("Content-Type", "application/json"), *headers])
    return [json.dumps(plain).encode()]


def _refuse(environ, start_response, service: str, fault: Fault):
    if fault is SILENT:
        time.sleep(_SILENCE_S)
    if not fault.status:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response("500 Cut", [])
        return []
    status, words = f"{fault.status} Fault", "as told"
    if service in ("iam", "sts", "s3"):
        text = f"<Error><Code>{fault.code}</Code><Message>{words}</Message></Error>"
        if service != "s3":
            text = f"<ErrorResponse>{text}</ErrorResponse>"
        start_response(status, [("Content-Type", "text/xml")])
        return [text.encode()]
    body = {"__type": fault.code, "message": words, "Message": words}
    return _json(start_response, body, status, [("x-amzn-ErrorType", fault.code)])
