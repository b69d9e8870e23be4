"""`python -m tests.faults.server ARGS`: `dane ARGS`, that can be made to crash; see `seams`."""

import os
import signal
import sys
import time
from types import FrameType

from tests.faults.clocks import install_database_clock
from tests.faults.labor import PID_VARIABLE
from tests.faults.process import BLOCKED
from tests.faults.seams import install


def block(_number: int, _frame: FrameType | None) -> None:
    """Hold the event loop, in whose thread signals are handled, and nothing else."""
    time.sleep(BLOCKED)


if __name__ == "__main__":
    install("server")
    signal.signal(signal.SIGUSR1, block)
    install_database_clock()
    if "dev" in sys.argv[1:2]:  # the workers are in the same process
        install("worker")
        os.environ[PID_VARIABLE] = str(os.getpid())

    from dane_core.cli import main

    main()
