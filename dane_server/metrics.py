"""What this process counts of itself, for Prometheus. No global state: each server has its own.

A room that counts something is given `Metrics` and says `metrics.rejected.labels("stale").inc()`;
a new number is a line in `__init__`. Labels come from short lists (checks, states, reasons) or
are task keys, which are few. What is read from elsewhere at the moment of asking is set in
`api/metrics.py`.
"""

import asyncio
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest

#: Seconds between two measurements of how late the event loop is.
_TICK = 0.5


class Metrics:
    """Counters and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.divergences = self._counter(
            "dane_divergence", "Divergences found between store, broker and workers", "check"
        )
        self.repairs = self._counter("dane_repair", "Divergences repaired by the server", "check")
        self.rejected = self._counter("dane_rejected", "Answers that were not recorded", "reason")
        self.removed = self._counter("dane_retention", "Rows and jobs that were too old", "kind")
        self.tasks = self._gauge("dane_tasks", "Tasks that are not settled", "state", "task_key")
        self.waiting = self._gauge("dane_queue_messages", "Messages that wait", "queue")
        self.consumers = self._gauge("dane_queue_consumers", "Consumers of a queue", "queue")
        self.connections = self._gauge("dane_store_connections", "Connections in use", "pool")
        self.lag = self._gauge("dane_event_loop_lag_seconds", "How late the event loop is")
        self.rebuilds = self._gauge(
            "dane_consumer_rebuilds", "Consumers made anew because they had gone silent"
        )
        self.paused = self._gauge("dane_dispatcher_paused", "1 while the broker takes no messages")
        self.reached = self._gauge("dane_reachable", "1 when it answers", "part")
        info = Info("dane_server", "The version that runs", registry=self.registry)
        info.info({"version": version("dane-router")})

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TICK
            await asyncio.sleep(_TICK)
            self.lag.set(max(loop.time() - due, 0.0))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
