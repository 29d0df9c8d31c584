"""The one-machine cloud: AWS Lambda's API, its limits and a Valkey server, on this machine.

`EmbeddedCloud` starts it as a process of its own; `python -m smlt.embedded` is that process.
"""

from smlt.embedded.cloud import EmbeddedCloud

__all__ = ["EmbeddedCloud"]
