"""``python -m smlt``: the command line, where no script of that name is on the PATH."""

import sys

from smlt.cli import main

if __name__ == "__main__":
    sys.exit(main())
