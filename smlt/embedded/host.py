"""What all environments of one embedded cloud share, and the variables they are given."""

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smlt.embedded.functions import FunctionVersion
from smlt.embedded.isolation import Isolation
from smlt.embedded.limits import Limits
from smlt.embedded.log_streams import LogGroups

INHERITED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
)
"""The user's own variables that a function gets: where programs are, and the credentials."""
MARK = "_SMLT_CLOUD"
"""The variable by which the janitor knows the processes of a cloud."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The one machine, as environments see it.

    visible: paths below /tmp that stay visible in a private /tmp. base_env: what every process gets
    beside Lambda's own variables. now: seconds since the epoch.
    """

    cloud_id: str
    run_dir: Path
    limits: Limits
    isolation: Isolation
    logs: LogGroups
    visible: Sequence[str]
    base_env: Mapping[str, str]
    now: Callable[[], float]

    def variables(
        self, function: FunctionVersion, *, log_stream: str, runtime_api: str, scratch: Path
    ) -> dict[str, str]:
        """The environment variables that Lambda sets, over the function's own."""
        own, root = function.environment, str(function.code.root)
        # The task root first, so that a package in the zip shadows an installed one; what this
        # program itself was given plays the layers.
        paths = [root, self.base_env.get("PYTHONPATH"), own.get("PYTHONPATH")]
        variables = {
            **self.base_env,
            **own,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}",
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": function.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": log_stream,
            "AWS_LAMBDA_RUNTIME_API": runtime_api,
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "LAMBDA_TASK_ROOT": root,
            "LAMBDA_RUNTIME_DIR": sys.prefix,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TZ": own.get("TZ", ":UTC"),
            "_HANDLER": function.handler,
        }
        if self.isolation.namespace is None:
            variables.setdefault("TMPDIR", str(scratch))
        return variables


def base_variables(inherited: Mapping[str, str], cloud_id: str) -> dict[str, str]:
    """What processes get beside Lambda's variables."""
    own = {key: inherited[key] for key in INHERITED if key in inherited}
    usual = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "en_US.UTF-8"}
    return {**usual, **own, MARK: cloud_id}


def visible_paths(asked: Iterable[str]) -> list[str]:
    """Paths below /tmp that stay visible to functions although they get a /tmp of their own.

    Those that are asked for, and where this Python has its programs and packages.
    """
    paths = [*asked, sys.prefix, sys.base_prefix, sys.executable, *sysconfig.get_paths().values()]
    # The first entry is the working directory's or empty, and no promise to functions.
    paths += [entry for entry in sys.path if entry and Path(entry).is_dir()]
    wanted = {form(path) for path in paths for form in (os.path.abspath, os.path.realpath)}
    return sorted(path for path in wanted if path == "/tmp" or path.startswith("/tmp/"))
