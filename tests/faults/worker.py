"""`python -m tests.faults.worker ARGS`: `dane ARGS`, that can be made to crash; see `seams`."""

import os

from tests.faults.clocks import install_worker_clock
from tests.faults.labor import PID_VARIABLE
from tests.faults.seams import install

if __name__ == "__main__":
    install("worker")
    install_worker_clock()
    os.environ[PID_VARIABLE] = str(os.getpid())

    from dane_core.cli import main

    main()
