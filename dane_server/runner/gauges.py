"""What is read from store and broker when somebody asks for the metrics, at most every so often."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from dane_core.errors import ExchangeUnreachable, StoreUnreachable
from dane_core.exchange.base import Exchange
from dane_core.routing import DEAD_QUEUE, work_queue
from dane_core.states import SETTLED, TaskState
from dane_server.metrics import Metrics
from dane_server.runner.totals import TotalsKeeper
from dane_server.storage.access import Access

#: A number that is asked for again within this time is the one that was read last.
FRESH: Final = timedelta(seconds=10)
_UNSETTLED: Final = tuple(state for state in TaskState if state not in SETTLED)


class Gauges:
    """Fills in the numbers that nobody counts, and prints the page."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        pools: Mapping[str, Access],
        exchange: Exchange,
        response_queue: str,
        totals: TotalsKeeper | None = None,
        fresh: timedelta = FRESH,
    ) -> None:
        self._metrics = metrics
        self._pools = pools
        self._exchange = exchange
        self._response_queue = response_queue
        self._totals = totals or TotalsKeeper(
            metrics=metrics, bulletin=next(iter(pools.values())).bulletin, exchange=exchange
        )
        self._fresh = fresh.total_seconds()
        self._read_at: float | None = None
        self._one_at_a_time = asyncio.Lock()

    async def page(self) -> bytes:
        """Every number, as Prometheus reads it; a part that does not answer is said to be away."""
        async with self._one_at_a_time:
            now = asyncio.get_running_loop().time()
            if self._read_at is None or now - self._read_at >= self._fresh:
                self._read_at = now
                await self._read()
        self._look_here()
        return self._metrics.page()

    async def _read(self) -> None:
        metrics = self._metrics
        metrics.tasks.clear()
        metrics.waiting.clear()
        metrics.consumers.clear()
        keys: list[str] = []
        try:
            keys = await self._count_tasks()
            await self._totals.look()
            metrics.reached.labels("store").set(1)
        except StoreUnreachable:
            metrics.reached.labels("store").set(0)
        try:
            for queue in [*map(work_queue, keys), self._response_queue, DEAD_QUEUE]:
                await self._look_at(queue)
            metrics.reached.labels("broker").set(1)
        except ExchangeUnreachable:
            metrics.reached.labels("broker").set(0)

    async def _count_tasks(self) -> list[str]:
        access = next(iter(self._pools.values()))
        counts = await access.examiner.open_tasks(_UNSETTLED)
        for key, by_state in counts.items():
            for state, number in by_state.items():
                self._metrics.tasks.labels(state.value, key).set(number)
        return sorted(counts)

    async def _look_at(self, queue: str) -> None:
        depth = await self._exchange.depth(queue)
        if depth is not None:
            self._metrics.waiting.labels(queue).set(depth.waiting)
            self._metrics.consumers.labels(queue).set(depth.consumers)

    def _look_here(self) -> None:
        """What costs nothing to know."""
        metrics, exchange = self._metrics, self._exchange
        for name, access in self._pools.items():
            for use, number in access.examiner.connections.items():
                metrics.connections.labels(f"{name}.{use}").set(number)
        metrics.paused.set(bool(exchange.blocked) or not exchange.connected)
