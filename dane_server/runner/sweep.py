"""Looks after what nobody else will: overdue claims, retries, acts that were cut short."""

import asyncio
import random

from dane_server.runner.bell import LocalBell
from dane_server.runner.pace import Pace
from dane_server.storage.acts import Acts
from dane_server.storage.sweeps import Sweeps


class Sweeper:
    """Passes over the store every few seconds, and when the next task falls due."""

    def __init__(self, *, sweeps: Sweeps, acts: Acts, bell: LocalBell, pace: Pace) -> None:
        self._sweeps = sweeps
        self._acts = acts
        self._bell = bell
        self._pace = pace

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            next_due = await self.sweep()
            # Jittered, so that several runners do not sweep at once.
            regular = self._pace.sweep.total_seconds() * random.uniform(0.8, 1.2)  # noqa: S311
            await asyncio.sleep(regular if next_due is None else min(regular, next_due))

    async def sweep(self) -> float | None:
        """Pass over the store once; returns the seconds until the next task falls due."""
        await self._acts.finish_walks()
        while await self._sweeps.sweep(limit=self._pace.batch, silence=self._pace.silence):
            pass
        # Rung in any case: what another process committed may have been announced to nobody.
        await self._bell.ring()
        next_due = await self._sweeps.next_due()
        return None if next_due is None else max(next_due, 0.05)
