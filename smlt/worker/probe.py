"""What ``smlt doctor`` asks of a function: what it is, and whether it reaches the stores."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from smlt._version import __version__
from smlt.config.function import FunctionEnvironment
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
        "data": _data(),
        "objects": await _objects(str(question["objects"])),
        "parameters": await _parameters(str(question["parameters"])),
    }


def _data() -> str:
    """Look at the file system that is to hold the data, if there is one."""
    folder = FunctionEnvironment.read().data
    try:
        return "" if not folder or os.listdir(folder) else f"{folder} is empty"
    except OSError as exc:
        return f"{folder} cannot be read: {exc.strerror}"


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
