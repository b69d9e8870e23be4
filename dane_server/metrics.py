"""What this process counts of itself, for Prometheus. No global state: each server has its own.

A room that counts something is given `Metrics` and says `metrics.rejected.labels("stale").inc()`;
a new number is a line in `__init__`. Labels come from short lists (checks, states, reasons) or
are task keys, which are few. What is read from elsewhere at the moment of asking is set in
`runner/gauges.py`. What is counted is kept in the store (`runner/totals.py`), so that every
server shows what any of them has counted, and none begins at 0 again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

#: Seconds between two measurements of how late the event loop is, while this process works and
#: while it does not: looking is work too. A stall is seen but for this.
_OFTEN = 0.03
_SELDOM = 0.25
#: The part of a core that is work.
_WORKS = 0.1

#: What is counted: the name of a number and its label, "" for one that has none.
Counted = tuple[str, str]


class Totals(Collector):
    """Numbers that only grow: those in the store, and what was counted here since."""

    def __init__(self) -> None:
        self._explained: dict[str, tuple[str, str]] = {}
        self._stored: Counter[Counted] = Counter()
        self._pending: Counter[Counted] = Counter()

    def add(self, name: str, text: str, label: str = "") -> "Total":
        """Have one more number, of one label at most."""
        self._explained[name] = (text, label)
        return Total(self, name)

    def count(self, name: str, label: str, number: int) -> None:
        self._pending[name, label] += number

    @property
    def pending(self) -> Mapping[Counted, int]:
        """What the store does not have yet."""
        return Counter({what: number for what, number in self._pending.items() if number})

    def stored(self, some: Mapping[Counted, int]) -> None:
        """So much of what was pending is in the store now."""
        self._pending.subtract(some)
        self._stored.update(some)

    def learn(self, read: Mapping[Counted, int]) -> None:
        """Take over what the store has; what was shown once is never shown smaller."""
        self._stored |= Counter(read)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """All of it, as Prometheus wants it."""
        counts = self._stored + self._pending
        for name, (text, label) in self._explained.items():
            family = CounterMetricFamily(f"dane_{name}", text, labels=[label] if label else [])
            for (of, value), number in sorted(counts.items()):
                if of == name and label:
                    family.add_metric([value], number)
            if not label:
                family.add_metric([], counts[name, ""])
            yield family


class Total:
    """One number of `Totals`, to be counted up."""

    def __init__(self, totals: Totals, name: str, label: str = "") -> None:
        self._totals = totals
        self._name = name
        self._label = label

    def labels(self, label: str) -> "Total":
        return Total(self._totals, self._name, label)

    def inc(self, number: int = 1) -> None:
        self._totals.count(self._name, self._label, number)


class Metrics:
    """Totals and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._worst = 0.0
        self.totals = Totals()
        count = self.totals.add
        self.divergences = count(
            "divergence", "Divergences found between store, broker and workers", "check"
        )
        self.repairs = count("repair", "Divergences repaired by the server", "check")
        self.rejected = count("rejected", "Answers that were not recorded", "reason")
        self.removed = count("retention", "Rows and jobs that were too old", "kind")
        self.rebuilds = count(
            "consumer_rebuilds", "Consumers made anew because they had gone silent"
        )
        self.registry.register(self.totals)
        self.tasks = self._gauge("dane_tasks", "Tasks that are not settled", "state", "task_key")
        self.waiting = self._gauge("dane_queue_messages", "Messages that wait", "queue")
        self.consumers = self._gauge("dane_queue_consumers", "Consumers of a queue", "queue")
        self.connections = self._gauge("dane_store_connections", "Connections in use", "pool")
        self.lag = self._gauge("dane_event_loop_lag_seconds", "How late the event loop is")
        self.stall = self._gauge(
            "dane_event_loop_stall_seconds",
            "How late the event loop was at most since the last look",
        )
        self.paused = self._gauge("dane_dispatcher_paused", "1 while the broker takes no messages")
        self.reached = self._gauge("dane_reachable", "1 when it answers", "part")
        info = Info("dane_server", "The version that runs", registry=self.registry)
        info.info({"version": version("dane-router")})

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        page = generate_latest(self.registry)
        self._worst = 0.0
        self.stall.set(0.0)
        return page

    async def watch_loop(self) -> None:
        """Measure how late the event loop is, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _OFTEN
        while True:
            worked, due = time.process_time(), loop.time() + pause
            await asyncio.sleep(pause)
            late = max(loop.time() - due, 0.0)
            self.lag.set(late)
            if late > self._worst:
                self._worst = late
                self.stall.set(late)
            works = time.process_time() - worked > _WORKS * (pause + late)
            pause = _OFTEN if works else _SELDOM

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
