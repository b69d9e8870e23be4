"""Keeps the long-lived parts running: the one place that catches everything and tries again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dane_core.errors import Unreachable

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A service has ended because it was told to, with nothing in hand."""


class Stopping:
    """The word to stop, which each service hears where it has nothing in hand."""

    def __init__(self) -> None:
        self._told = False
        self._idle: set[asyncio.Timeout] = set()

    @property
    def told(self) -> bool:
        return self._told

    def tell(self) -> None:
        """End what is idle now, and everything else as soon as it is about to be."""
        self._told = True
        for idle in self._idle:
            idle.reschedule(0.0)

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """Wait in here for more to do, where nothing is lost when that is broken off.

        A cancellation that was lost on the way here is heeded. Raises: Stopped, once the word
        was given.
        """
        if self._told:
            raise Stopped
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # `asyncio.wait_for` loses one that meets the end of what it waits for (Python 3.11),
            # and drivers connect by it: whoever waited here then would wait for ever.
            raise asyncio.CancelledError
        try:
            async with asyncio.timeout(None) as limit:
                self._idle.add(limit)
                try:
                    yield
                finally:
                    self._idle.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Stopped from None


async def keep_running(
    name: str,
    run: Callable[[], Awaitable[None]],
    pause: float = 1.0,
    *,
    stopping: Stopping | None = None,
) -> None:
    """Run a service until cancelled, starting it again whenever it ends, `pause` seconds later.

    Once the word to stop was given it is not started again, however it ended.
    A broken connection can reach its users as a cancellation nobody asked for (aio-pika); only
    a cancellation that was requested of this very task ends the service.
    """
    stopping, told = stopping or Stopping(), ""
    while True:
        try:
            await run()
            logger.warning("%s ended; starting again in %ss", name, pause)
        except Stopped:
            return
        except Unreachable as fault:
            # Said once: a broker may be away for hours, and is asked for every second.
            logger.log(
                logging.DEBUG if str(fault) == told else logging.WARNING,
                "%s: %s; trying again every %ss",
                name,
                fault,
                pause,
            )
            told = str(fault)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            logger.warning("%s was cut off; starting again in %ss", name, pause)
        except Exception:
            logger.exception("%s stopped; starting again in %ss", name, pause)
        try:
            async with stopping.idle():
                await asyncio.sleep(pause)
        except Stopped:
            return
