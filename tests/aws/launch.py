"""``smlt`` as if this machine were one of Lambda's: what is compiled for it loads there."""

import platform
import sys

from smlt.aws import machine
from smlt.cli import main

_, version = platform.libc_ver()
machine.GLIBC = dict.fromkeys(machine.GLIBC, tuple(map(int, version.split("."))))

if __name__ == "__main__":
    sys.exit(main())
