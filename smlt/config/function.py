"""What Lambda tells a function about itself through its environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

BUNDLES_VARIABLE = "SMLT_BUNDLES"
DATA_VARIABLE = "SMLT_DATA"


@dataclass(frozen=True, slots=True)
class FunctionEnvironment:
    """Where a function's code and its scratch space are."""

    task_root: str
    tmp: str
    bundles: str = ""
    """Digest of the list of packages to fetch; empty where all are there."""
    data: str = ""
    """Folder of the data, where a file system with it is mounted."""

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the process's environment; outside Lambda the current folder is the code's."""
        variables = os.environ if environment is None else environment
        return cls(
            variables.get("LAMBDA_TASK_ROOT", "."),
            tempfile.gettempdir(),
            variables.get(BUNDLES_VARIABLE, ""),
            variables.get(DATA_VARIABLE, ""),
        )
