"""What all environments of one embedded cloud share, and the variables they are given."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smlt.embedded.functions import FunctionVersion
from smlt.embedded.isolation import Isolation
from smlt.embedded.limits import Limits
from smlt.embedded.log_streams import LogGroups


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
