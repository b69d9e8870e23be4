"""`python -m tests.faults.server ARGS`: `dane ARGS`, that can be made to crash; see `seams`."""

import os
import sys

from tests.faults.labor import PID_VARIABLE
from tests.faults.seams import install

if __name__ == "__main__":
    install("server")
    if "dev" in sys.argv[1:2]:  # the workers are in the same process
        install("worker")
        os.environ[PID_VARIABLE] = str(os.getpid())

    from dane_core.cli import main

    main()
