"""``smlt`` as if this machine were one of Lambda's: what is compiled for it loads there.

``TEST_CLOSED_PORT`` names a port that this process, unlike functions, cannot connect to.
"""

import os
import platform
import sys

from smlt.aws import machine
from smlt.cli import main

_, version = platform.libc_ver()
machine.GLIBC = dict.fromkeys(machine.GLIBC, tuple(map(int, version.split("."))))
CLOSED = int(os.environ.get("TEST_CLOSED_PORT", "0"))


def refuse(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][1] == CLOSED:
        raise ConnectionRefusedError(111, "closed for this test")


if __name__ == "__main__":
    if CLOSED:
        sys.addaudithook(refuse)
    sys.exit(main())
