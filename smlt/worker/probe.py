"""What ``smlt doctor`` asks of a function: what it is, and whether it reaches the stores."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from smlt._version import __version__
from smlt.errors import SmltError
from smlt.io.stores import open_object_store, open_parameter_store

PROBE = "probe"
"""Key of an event that is a question and no task."""
_REACH_S = 10.0


async def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Try both stores; an empty text says that one answers."""
    return {
        "smlt": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": os.uname().machine,
        "time": time.time(),
        "objects": await _objects(str(question["objects"])),
        "parameters": await _parameters(str(question["parameters"])),
    }


async def _objects(url: str) -> str:
    try:
        async with open_object_store(url) as store:
            await store.head("code/none")
    except SmltError as exc:
        return str(exc)
    return ""


async def _parameters(url: str) -> str:
    try:
        async with open_parameter_store(url, time_limit_s=_REACH_S) as store:
            await store.discard(["smlt"])
    except SmltError as exc:
        return str(exc)
    return ""
