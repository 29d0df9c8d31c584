"""What a host's arithmetic depends on: each of these changes the bits of a gradient."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.lib.introspect import opt_func_info

Numerics = dict[str, Any]


def of_this_host() -> Numerics:
    """Return architecture, versions, instruction sets in use, and torch's threads if it is there.

    Pinned by the function's environment where that is possible (``function_environment``); this is
    what came of it, so it is asked for after the task has been imported.
    """
    found: Numerics = {
        "architecture": os.uname().machine,
        "numpy": np.__version__,
        "numpy instructions": _numpy_instructions(),
    }
    # A task without torch does not pay for importing it.
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = torch.__version__
        found["torch instructions"] = torch.backends.cpu.get_cpu_capability()
        found["torch threads"] = torch.get_num_threads()
    return found


def difference(began: Numerics, here: Numerics) -> str:
    """Say in words how a host differs from that on which a job began; empty if it does not.

    What is known of one of them only is no difference: torch may have been imported for reasons of
    its own.
    """
    return "; ".join(
        f"{name} {here[name]} instead of {began[name]}"
        for name in began
        if name in here and here[name] != began[name]
    )


def _numpy_instructions() -> str:
    kernels = opt_func_info(func_name="^sin$", signature="float32").get("sin", {})
    return next((str(kernel["current"]) for kernel in kernels.values()), "baseline")
