"""What a task of the test workers may do instead of ending as a task should."""

import ctypes
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

#: How much `die of memory` has in its hands when it is ended, in bytes.
HOARD: Final = 300 * 1024 * 1024
#: What `flood` writes to stderr, in bytes.
FLOOD: Final = 100 * 1024 * 1024
#: Of memory, what a limited process may have more than it has, in bytes.
_MORE: Final = 64 * 1024 * 1024
_PIECE: Final = 1024 * 1024


def hang() -> None:
    """Run in C for ever, with the interpreter held: not even a signal is handled."""
    all(itertools.repeat("on and on"))


def loop() -> NoReturn:
    """Run in Python for ever, and never wait."""
    while True:
        pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_of_memory() -> None:
    """As the kernel ends what uses too much of it: with all of it in its hands."""
    hoard = b"x" * HOARD
    os.kill(os.getpid(), signal.SIGKILL)
    print(len(hoard))


def run_into_memory_limit() -> None:
    """Ask for more memory than this very process may have."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MORE
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    hoard = []
    while True:
        hoard.append(bytearray(_PIECE))


def crash() -> None:
    """As a native library does that reads where nothing is."""
    ctypes.string_at(0)


def leave() -> NoReturn:
    os._exit(3)


def sys_exit() -> NoReturn:
    sys.exit("enough")


def raise_it() -> NoReturn:
    raise ValueError("no such colour: \N{SNOWMAN}")


def shout() -> NoReturn:
    raise ValueError("much ado \0" * 1_000_000)


def flood() -> NoReturn:
    """Write far more to stderr than anybody wants to read, then fail."""
    for _ in range(FLOOD // _PIECE):
        os.write(2, b"x" * (_PIECE - 1) + b"\n")
    raise ValueError("after the flood")


TROUBLE: Final[Mapping[str, Callable[[], None]]] = {
    "hang": hang,
    "loop": loop,
    "die": die,
    "die of memory": die_of_memory,
    "run into its memory limit": run_into_memory_limit,
    "crash": crash,
    "leave": leave,
    "sys.exit": sys_exit,
    "raise": raise_it,
    "shout": shout,
    "flood": flood,
}
