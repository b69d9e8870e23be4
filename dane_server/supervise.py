"""Keeps the long-lived parts running: the one place that catches everything and tries again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from dane_core.errors import Unreachable

logger = logging.getLogger(__name__)


async def keep_running(
    name: str, run: Callable[[], Awaitable[None]], pause: float = 1.0
) -> NoReturn:
    """Run a service until cancelled, starting it again whenever it ends, `pause` seconds later.

    A broken connection can reach its users as a cancellation nobody asked for (aio-pika); only
    a cancellation that was requested of this very task ends the service.
    """
    told = ""
    while True:
        try:
            await run()
            logger.warning("%s ended; starting again in %ss", name, pause)
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
        await asyncio.sleep(pause)
