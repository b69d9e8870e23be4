"""Keeps what a server counts in the store, where all of them read it."""

import asyncio
from datetime import timedelta
from typing import Final

from dane_core.exchange.base import Exchange
from dane_server.metrics import Metrics
from dane_server.storage.bulletin import Bulletin
from dane_server.supervise import Stopped, Stopping

#: So much of what was counted is lost with a server that is killed.
EVERY: Final = timedelta(seconds=10)


class TotalsKeeper:
    """Brings the counts of this process into the store, and those of all out of it.

    A count whose commit was not acknowledged may come to be counted twice: it never goes back.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        bulletin: Bulletin,
        exchange: Exchange,
        every: timedelta = EVERY,
        stopping: Stopping | None = None,
    ) -> None:
        self._metrics = metrics
        self._bulletin = bulletin
        self._exchange = exchange
        self._every = every.total_seconds()
        self._stopping = stopping or Stopping()
        self._cures = 0
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Write down what was counted, now and then, and as the last thing."""
        while True:
            try:
                async with self._stopping.idle():
                    await asyncio.sleep(self._every)
            except Stopped:
                await self.write_down()
                raise
            await self.write_down()

    async def write_down(self) -> None:
        """Bring what was counted here into the store. Raises: StoreUnreachable."""
        async with self._one_at_a_time:
            # Only consumers on RabbitMQ can go deaf.
            cures = getattr(self._exchange, "cures", 0)
            self._metrics.rebuilds.inc(cures - self._cures)
            self._cures = cures
            totals = self._metrics.totals
            pending = totals.pending
            await self._bulletin.count(pending)
            totals.stored(pending)

    async def look(self) -> None:
        """Show what all servers have counted. Raises: StoreUnreachable."""
        await self.write_down()
        self._metrics.totals.learn(await self._bulletin.totals())
