"""The kernels and the reader of replies, compiled, or their twins in Python and NumPy on request.

SMLT_PURE_PYTHON=1 chooses the twins. Without it a missing extension is an error, never a silent
fallback: on a function that would be a bill nobody sees.
"""

import os
import sys
from typing import TYPE_CHECKING

if not TYPE_CHECKING and os.environ.get("SMLT_PURE_PYTHON") == "1":
    from smlt._core._reference import codec, reply_reader, shard_reduce

    # `from smlt._core.codec import ...` must not find the extensions behind our back.
    sys.modules[f"{__name__}.codec"] = codec
    sys.modules[f"{__name__}.reply_reader"] = reply_reader
    sys.modules[f"{__name__}.shard_reduce"] = shard_reduce
    COMPILED = False
else:
    try:
        from smlt._core import codec, reply_reader, shard_reduce
    except ImportError as exc:
        raise ImportError(
            f"smlt's compiled core cannot be imported ({exc}): run `make build`, "
            "or set SMLT_PURE_PYTHON=1 to do without its speed"
        ) from exc
    COMPILED = True

__all__ = ["COMPILED", "codec", "reply_reader", "shard_reduce"]
