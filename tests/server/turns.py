"""How long an event loop's turns are, by the processor time of its thread: load does not count."""

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """What was seen of the turns of a loop: of callbacks, and steps of tasks."""

    def __init__(self) -> None:
        self.longest = 0.0  # seconds
        self.of = ""

    def note(self, seconds: float, callback: object) -> None:
        if seconds > self.longest:
            self.longest, self.of = seconds, repr(callback)


@contextmanager
def watched_turns() -> Iterator[Turns]:
    """Watch the loops of this process. What it has imported is no matter of the collector here.

    A server sees to that itself, once it is ready.
    """
    turns = Turns()
    handle = asyncio.Handle
    run = handle._run

    def measured(self: asyncio.Handle) -> None:
        callback, began = getattr(self, "_callback", None), time.thread_time()
        run(self)
        turns.note(time.thread_time() - began, callback)

    gc.collect()
    gc.freeze()
    handle._run = measured  # type: ignore[method-assign]
    try:
        yield turns
    finally:
        handle._run = run  # type: ignore[method-assign]
        gc.unfreeze()
