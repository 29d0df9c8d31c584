"""The functions that exist: configurations, versions, reserved concurrency, event settings."""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from smlt.embedded.api_error import ApiError, conflict, invalid, not_found
from smlt.embedded.code_packages import CodePackage
from smlt.embedded.limits import Limits

LATEST = "$LATEST"
ACCOUNT = "000000000000"
NAME = re.compile(
    r"(?:arn:[\w-]+:lambda:[\w-]+:)?(?:\d{12}:)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9-_]{1,64})(?::(?P<qualifier>\$LATEST|[a-zA-Z0-9-_]+))?"
)
RESERVED_VARIABLES = frozenset(
    {
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionVersion:
    """One version of a function, complete and immutable; an update makes another one."""

    name: str
    region: str
    code: CodePackage
    handler: str
    role: str
    runtime: str
    version: str = LATEST
    description: str = ""
    memory_mb: int = 128
    timeout_s: int = 3
    ephemeral_mb: int = 512
    environment: Mapping[str, str] = field(default_factory=dict)
    architecture: str = "x86_64"
    last_modified: str = ""
    revision_id: str = ""

    @property
    def function_arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{ACCOUNT}:function:{self.name}"

    @property
    def arn(self) -> str:
        return f"{self.function_arn}:{self.version}"

    def configuration(self, qualified: bool = True) -> dict[str, Any]:
        """The API's FunctionConfiguration."""
        shown: dict[str, Any] = {
            "FunctionName": self.name,
            "FunctionArn": self.arn if qualified else self.function_arn,
            "Runtime": self.runtime,
            "Role": self.role,
            "Handler": self.handler,
            "CodeSize": self.code.size,
            "CodeSha256": self.code.sha256,
            "Description": self.description,
            "Timeout": self.timeout_s,
            "MemorySize": self.memory_mb,
            "EphemeralStorage": {"Size": self.ephemeral_mb},
            "LastModified": self.last_modified,
            "Version": self.version,
            "RevisionId": self.revision_id,
            "State": "Active",
            "LastUpdateStatus": "Successful",
            "PackageType": "Zip",
            "Architectures": [self.architecture],
            "TracingConfig": {"Mode": "PassThrough"},
            "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
            "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{self.name}"},
        }
        if self.environment:
            shown["Environment"] = {"Variables": dict(self.environment)}
        return shown


@dataclass(slots=True)
class Function:
    """A function: its versions by name, `$LATEST` among them, and what is set beside them."""

    versions: dict[str, FunctionVersion]
    tags: dict[str, str] = field(default_factory=dict)
    next_version: int = 1
    reserved: int | None = None
    event_settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def latest(self) -> FunctionVersion:
        return self.versions[LATEST]


class Functions:
    """The register of functions. Refusals are ApiErrors with Lambda's own codes."""

    def __init__(self, limits: Limits, region: str, now: Callable[[], float]) -> None:
        self._limits = limits
        self._region = region
        self._now = now
        self._functions: dict[str, Function] = {}

    def all(self) -> list[Function]:
        return [self._functions[name] for name in sorted(self._functions)]

    def get(self, name: str) -> Function:
        try:
            return self._functions[name]
        except KeyError:
            arn = f"arn:aws:lambda:{self._region}:{ACCOUNT}:function:{name}"
            raise not_found(f"Function not found: {arn}") from None

    def version(self, name: str, qualifier: str | None) -> FunctionVersion:
        """The version that a qualifier names; without one it is `$LATEST`."""
        function = self.get(name)
        try:
            return function.versions[qualifier or LATEST]
        except KeyError:
            raise not_found(
                f"Function not found: {function.latest.function_arn}:{qualifier}"
            ) from None

    def create(self, request: Mapping[str, Any], code: CodePackage) -> FunctionVersion:
        name, _ = split_name(str(request.get("FunctionName", "")))
        if name in self._functions:
            raise conflict(f"Function already exist: {name}")
        for key in ("Handler", "Role", "Runtime"):
            if not request.get(key):
                raise invalid(f"{key} is missing: a function given as a zip needs it.")
        blank = FunctionVersion(
            name=name, region=self._region, code=code, handler="", role="", runtime=""
        )
        latest = self._changed(blank, request)
        architectures = request.get("Architectures") or ["x86_64"]
        latest = replace(latest, architecture=str(architectures[0]))
        tags = {str(key): str(value) for key, value in (request.get("Tags") or {}).items()}
        self._functions[name] = Function({LATEST: latest}, tags)
        return self.publish(name) if request.get("Publish") else latest

    def update(
        self, name: str, request: Mapping[str, Any], code: CodePackage | None = None
    ) -> FunctionVersion:
        """Change `$LATEST`; published versions stay what they are."""
        function = self.get(name)
        self._check_revision(function.latest, request)
        changed = self._changed(function.latest, request)
        if code is not None:
            changed = replace(changed, code=code)
        function.versions[LATEST] = changed
        return self.publish(name) if request.get("Publish") else changed

    def publish(self, name: str, request: Mapping[str, Any] | None = None) -> FunctionVersion:
        """Freeze `$LATEST` under the next number; unchanged since the last one, it is that one."""
        request = request or {}
        function = self.get(name)
        latest = function.latest
        self._check_revision(latest, request)
        if request.get("CodeSha256") not in (None, latest.code.sha256):
            raise invalid(
                f"CodeSHA256 ({request['CodeSha256']}) is different from current CodeSHA256 in "
                f"$LATEST ({latest.code.sha256}). Please try again with the CodeSHA256 in $LATEST."
            )
        newest = function.versions.get(str(function.next_version - 1))
        if newest is not None and _is_same(newest, latest):
            return newest
        version = str(function.next_version)
        function.next_version += 1
        published = replace(
            latest,
            version=version,
            description=request.get("Description") or latest.description,
            revision_id=str(uuid.uuid4()),
            last_modified=self._timestamp(),
        )
        function.versions[version] = published
        return published

    def delete(self, name: str, qualifier: str | None) -> None:
        if qualifier is None:
            self.get(name)
            del self._functions[name]
        elif qualifier == LATEST:
            raise invalid("$LATEST version cannot be deleted without deleting the function.")
        else:
            self.version(name, qualifier)
            del self._functions[name].versions[qualifier]

    def reserve(self, name: str, count: int | None) -> None:
        """Reserve concurrency for a function, or with None give it back."""
        function = self.get(name)
        if count is not None:
            others = sum(other.reserved or 0 for other in self.all() if other is not function)
            floor = self._limits.unreserved_floor
            if count < 0 or self._limits.account_concurrency - others - count < floor:
                raise invalid(
                    "Specified ReservedConcurrentExecutions for function decreases account's "
                    f"UnreservedConcurrentExecution below its minimum value of [{floor}]."
                )
        function.reserved = count

    def reserved_total(self) -> int:
        return sum(function.reserved or 0 for function in self._functions.values())

    def _changed(self, base: FunctionVersion, request: Mapping[str, Any]) -> FunctionVersion:
        variables = _variables(request, self._limits)
        limits = self._limits
        storage = request.get("EphemeralStorage") or {}
        return replace(
            base,
            handler=str(request.get("Handler") or base.handler),
            role=str(request.get("Role") or base.role),
            runtime=str(request.get("Runtime") or base.runtime),
            description=str(request.get("Description", base.description)),
            memory_mb=_within(request, "MemorySize", limits.memory_mb, base.memory_mb),
            timeout_s=_within(request, "Timeout", limits.timeout_s, base.timeout_s),
            ephemeral_mb=_within(storage, "Size", limits.ephemeral_mb, base.ephemeral_mb),
            environment=base.environment if variables is None else variables,
            last_modified=self._timestamp(),
            revision_id=str(uuid.uuid4()),
        )

    def _check_revision(self, latest: FunctionVersion, request: Mapping[str, Any]) -> None:
        if request.get("RevisionId") not in (None, latest.revision_id):
            raise ApiError(
                "PreconditionFailedException",
                412,
                "The Revision Id provided does not match the latest Revision Id. Call the "
                "GetFunction/GetAlias API to retrieve the latest Revision Id",
            )

    def _timestamp(self) -> str:
        moment = datetime.fromtimestamp(self._now(), UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}+0000"


def split_name(text: str) -> tuple[str, str | None]:
    """Name and qualifier from a name, a partial ARN or an ARN."""
    match = NAME.fullmatch(text)
    if match is None:
        raise invalid(f"{text!r} is no function name, partial ARN or ARN.")
    return match["name"], match["qualifier"]


def _is_same(one: FunctionVersion, other: FunctionVersion) -> bool:
    """Whether two versions differ in nothing that a caller set."""
    return one == replace(
        other,
        version=one.version,
        revision_id=one.revision_id,
        last_modified=one.last_modified,
        description=one.description,
    )


def _variables(request: Mapping[str, Any], limits: Limits) -> dict[str, str] | None:
    """The environment variables of a request; None where it does not speak of them."""
    environment = request.get("Environment")
    if environment is None:
        return None
    variables = {str(key): str(text) for key, text in (environment.get("Variables") or {}).items()}
    reserved = sorted(RESERVED_VARIABLES.intersection(variables))
    if reserved:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment "
            "variables you have provided contains reserved keys that are currently not supported "
            f"for modification. Reserved keys used in this request: {', '.join(reserved)}"
        )
    if len(json.dumps(variables).encode()) > limits.environment_bytes:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment "
            f"variables you have provided exceeded the {limits.environment_bytes} bytes limit."
        )
    return variables


def _within(request: Mapping[str, Any], key: str, bounds: tuple[int, int], default: int) -> int:
    value = request.get(key, default)
    if not isinstance(value, int) or not bounds[0] <= value <= bounds[1]:
        raise invalid(f"Value {value!r} at {key!r} must lie between {bounds[0]} and {bounds[1]}.")
    return value
