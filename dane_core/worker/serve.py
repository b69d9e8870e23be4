"""A worker process: serves its keys until it is drained."""

import asyncio
import logging
import os
import re
import secrets
import socket
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from dane_core.errors import BadWorker, ExchangeUnreachable, QueueMismatch
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import Control, Goodbye, Heartbeat, Hello, Offer, Ticket
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE
from dane_core.worker.attempt import Attempt, Desk, Pace, Stop
from dane_core.worker.counter import Counter, Floor, Slots
from dane_core.worker.health import Health, health_page
from dane_core.worker.inbox import Inbox
from dane_core.worker.isolation import PATIENCE, place_for
from dane_core.worker.outbox import Outbox
from dane_core.worker.spool import Spool
from dane_core.worker.watched import Brief, Running, Watched
from dane_core.worker.worker import Worker, check_worker, offer_of

logger = logging.getLogger(__name__)

#: After the grace of a drain: to kill what still runs, and to have that confirmed, in seconds.
_LAST_WORDS: Final = 15.0
#: To say goodbye, in seconds.
_FAREWELL: Final = 2.0
#: Before what did not reach the exchange is tried again, in seconds.
_AGAIN: Final = 1.0
#: How many beats may fail to arrive before a lease ends, and one.
_BEATS_IN_A_LEASE: Final = 4
#: Consumers in one process, over all keys; a RabbitMQ connection has 2,047 channels.
_MOST_LANES: Final = 1_500


def host_name() -> str:
    """This machine, as ids of workers and names of files have it."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:60]


def new_worker_id() -> str:
    """A name no other worker has, which says where it is."""
    return f"{host_name()}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a worker process serves."""

    slots: int = 1  # tasks at once, over all its keys
    worker_id: str = field(default_factory=new_worker_id)
    grace: timedelta = timedelta(seconds=30)  # for running tasks, when it is drained
    api_url: str | None = None  # of the server, for answers too large to come along
    response_queue: str = RESPONSE_QUEUE
    hello_every: timedelta = timedelta(seconds=15)
    ask_patience: timedelta = timedelta(seconds=10)  # for a server to answer a question
    beat: timedelta = timedelta(seconds=15)  # between two heartbeats
    pace: Pace = field(default_factory=Pace)
    #: The broker's address, where a watchman is to speak for a process that cannot.
    watched_at: str | None = field(default=None, repr=False)
    pulse: timedelta = timedelta(seconds=1)  # between two words to the watchman
    spool: Path | None = None  # where answers outlive this process until they are confirmed
    health_port: int | None = None  # 0 is any free port
    health_host: str = "127.0.0.1"

    @property
    def lease(self) -> timedelta:
        """How long an attempt may go on without a heartbeat that names it."""
        return _BEATS_IN_A_LEASE * self.beat


async def serve(
    workers: Sequence[type[Worker]],
    exchange: Exchange,
    serving: Serving,
    *,
    draining: asyncio.Event | None = None,
) -> None:
    """Do the tasks of these workers' keys, until `draining` is set and they are done.

    A drain stops taking tasks, gives running ones their grace, and hands the rest back with no
    attempt spent. When cancelled, everything is dropped where it is, and comes again elsewhere.
    Raises: BadWorker, QueueMismatch, when there is nothing here that can be served.
    """
    for worker in workers:
        check_worker(worker)
    keys = [worker.key for worker in workers]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise BadWorker(f"two workers for one key: {', '.join(sorted(twice))}")
    if not workers:
        raise BadWorker("no worker to serve")
    await _Service(workers, exchange, serving, draining or asyncio.Event()).run()


class _Service:
    def __init__(
        self,
        workers: Sequence[type[Worker]],
        exchange: Exchange,
        serving: Serving,
        draining: asyncio.Event,
    ) -> None:
        self._workers = workers
        self._exchange = exchange
        self._serving = serving
        self._draining = draining
        self._spool = (
            Spool(serving.spool, serving.worker_id, host_name()) if serving.spool else None
        )
        self._outbox = Outbox(exchange, serving.response_queue, self._spool)
        self._inbox = Inbox(
            exchange,
            serving.worker_id,
            self._outbox,
            self._obey,
            patience=serving.ask_patience,
        )
        self._floor = Floor(
            exchange=exchange,
            desk=Desk(
                worker_id=serving.worker_id,
                outbox=self._outbox,
                lease=serving.lease,
                on_begin=self._tell_watchman,
                api_url=serving.api_url,
                pace=serving.pace,
            ),
            inbox=self._inbox,
            slots=Slots(serving.slots),
            running={},
        )
        self._counters: dict[str, Counter] = {}
        self._offers: tuple[Offer, ...] = ()
        self._fresh = True
        self._hello_now = asyncio.Event()
        self._last_beat: datetime | None = None
        self._watched: Watched | None = None

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            if self._spool is not None:
                stack.callback(self._spool.close)
            await self._set_up(stack)
            await self._insist_on_queues()
            if self._serving.health_port is not None:
                page = health_page(
                    self._serving.health_host, self._serving.health_port, self._examine
                )
                await stack.enter_async_context(page)
            if self._serving.watched_at is not None:
                self._watched = await stack.enter_async_context(
                    Watched(self._brief(self._serving.watched_at), self._whats_running)
                )
            await self._serve()

    async def _set_up(self, stack: AsyncExitStack) -> None:
        """Set up each worker where it will run: a model is loaded before a task is taken."""
        lanes = max(1, min(self._serving.slots, _MOST_LANES // len(self._workers)))
        for worker in self._workers:
            place = await stack.enter_async_context(place_for(worker, self._serving.slots))
            self._counters[worker.key] = Counter(worker, place, self._floor, lanes)

    async def _insist_on_queues(self) -> None:
        """Make the queues, however often that takes: the exchange was there a moment ago."""
        while not self._draining.is_set():
            try:
                await self._declare()
            except ExchangeUnreachable as loss:
                logger.warning("the queues are not there yet: %s; trying again", loss)
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await self._draining.wait()

    async def _declare(self) -> None:
        """Make the queues. A key whose queue is in the way is left out; others work."""
        for queue in (self._serving.response_queue, DEAD_QUEUE):
            await self._exchange.declare_queue(queue)
        for key, counter in list(self._counters.items()):
            try:
                await counter.declare()
            except QueueMismatch as fault:
                logger.error("%s is not served: %s", key, fault)  # noqa: TRY400
                del self._counters[key]
                if not self._counters:
                    raise
        self._offers = tuple(offer_of(counter.worker) for counter in self._counters.values())

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            ends = [
                group.create_task(_endless(run))
                for run in (
                    self._outbox.run(),
                    self._outbox.deliver_left(),
                    self._inbox.run(),
                    self._note_reconnections(),
                    self._beat(),
                )
            ]
            await _first_of(self._inbox.listening, self._draining)
            counters = {group.create_task(counter.run()) for counter in self._counters.values()}
            ends.append(group.create_task(_endless(self._greet())))
            await self._draining.wait()
            await self._drain(counters)
            for task in ends:
                task.cancel()

    # --- leave ------------------------------------------------------------------------------

    async def _drain(self, counters: "set[asyncio.Task[None]]") -> None:
        logger.info(
            "draining: no more tasks are taken; what runs (%d) may end within %g s",
            len(self._floor.running),
            self._serving.grace.total_seconds(),
        )
        for counter in self._counters.values():
            counter.close()
        _, busy = await asyncio.wait(counters, timeout=self._serving.grace.total_seconds())
        for attempt in self._floor.running.values():
            attempt.stop(Stop.DRAINED)
        if busy:
            _, busy = await asyncio.wait(busy, timeout=_LAST_WORDS)
        for counter_task in busy:
            counter_task.cancel()  # nobody takes its words: its tasks go back with the connection
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                fate = await self._outbox.post(Goodbye(worker=self._serving.worker_id))
                if self._watched is not None and fate is Fate.ROUTED and not self._floor.running:
                    self._watched.said_goodbye = True

    # --- listen -----------------------------------------------------------------------------

    def _obey(self, control: Control) -> None:
        match control.act:
            case "cancel":
                self._cancel(control)
            case "pause" if control.key in self._counters:
                self._counters[control.key].pause()
            case "resume" if control.key in self._counters:
                self._counters[control.key].resume()
            case "drain" if control.worker == self._serving.worker_id:
                self._draining.set()
            case "roll":
                self._hello_now.set()

    def _cancel(self, control: Control) -> None:
        if control.job_id is None and control.task_id is None:
            return
        for (task_id, number), attempt in self._floor.running.items():
            if (
                control.task_id in (None, task_id)
                and control.job_id in (None, attempt.message.job_id)
                and control.attempt in (None, number)
            ):
                attempt.stop(Stop.CANCELLED, _courtesy(control))

    async def _note_reconnections(self) -> None:
        async for _ in self._exchange.reconnections():
            logger.info("the exchange is there again")
            for attempt in self._floor.running.values():
                attempt.hand_off()  # its message may be in the queue again, for others
            self._inbox.missed_some()
            self._fresh = True
            self._hello_now.set()

    # --- speak ------------------------------------------------------------------------------

    async def _greet(self) -> None:
        for counter in self._counters.values():
            await counter.consuming.wait()
        while True:
            self._hello_now.clear()
            fate = await self._outbox.post(self._hello())
            if fate is Fate.ROUTED and not self._hello_now.is_set():
                self._fresh = False
            pause = self._serving.hello_every.total_seconds()
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN if self._fresh else pause):
                    await self._hello_now.wait()

    def _hello(self) -> Hello:
        return Hello(
            worker=self._serving.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            slots=self._serving.slots,
            inbox=self._inbox.name,
            offers=self._offers,
            running=tuple(attempt.message.ticket for attempt in self._floor.running.values()),
            fresh=self._fresh,
            listening=self._inbox.unwelcomed,
        )

    async def _beat(self) -> None:
        """Say now and then what is being done here, so that nobody takes it for lost."""
        lease = self._serving.lease.total_seconds()
        while True:
            await asyncio.sleep(self._serving.beat.total_seconds())
            if worth := self._worth_a_beat():
                beat = Heartbeat(
                    worker=self._serving.worker_id,
                    running=tuple(attempt.message.ticket for attempt in worth),
                    lease=lease,
                    leased=frozenset(
                        attempt.message.ticket for attempt in worth if attempt.leased.done()
                    ),
                )
                if await self._outbox.post(beat) is Fate.ROUTED:
                    self._last_beat = datetime.now(UTC)

    def _worth_a_beat(self) -> list[Attempt]:
        short = self._serving.pace.started.total_seconds()
        return [
            attempt
            for attempt in self._floor.running.values()
            if attempt.leased.done() or attempt.age >= short
        ]

    # --- be watched -------------------------------------------------------------------------

    def _brief(self, broker: str) -> Brief:
        serving = self._serving
        return Brief(
            url=broker,
            worker=serving.worker_id,
            response_queue=serving.response_queue,
            # Its silence is to be noticed well before a lease ends.
            pulse=min(serving.pulse, serving.beat / 2).total_seconds(),
            beat=serving.beat.total_seconds(),
            lease=serving.lease.total_seconds(),
            spool=str(serving.spool) if serving.spool else None,
        )

    def _whats_running(self) -> list[Running]:
        return [
            Running(
                ticket=attempt.message.ticket,
                runtime=attempt.age,
                leased=attempt.leased.done(),
            )
            for attempt in self._floor.running.values()
        ]

    def _tell_watchman(self, ticket: Ticket) -> None:
        if self._watched is not None:
            self._watched.note_begin(ticket)

    # --- be looked at -----------------------------------------------------------------------

    def _examine(self) -> Health:
        connected, draining = self._exchange.connected, self._draining.is_set()
        running = self._floor.running.values()
        return connected and not draining, {
            "status": "draining" if draining else "ok" if connected else "no exchange",
            "worker": self._serving.worker_id,
            "keys": sorted(self._counters),
            "slots": self._serving.slots,
            "running": len(running),
            "leased": [
                {
                    "task_id": attempt.message.ticket.task_id,
                    "attempt": attempt.message.ticket.attempt,
                    "seconds": round(attempt.age, 1),
                }
                for attempt in running
                if attempt.leased.done()
            ],
            "watched": self._watched is not None and self._watched.connected,
            "last_heartbeat": self._last_beat and self._last_beat.isoformat(),
        }


def _courtesy(control: Control) -> timedelta | None:
    """How long cancelled work may take to end by itself, so that all of it ends in the grace."""
    if control.grace is None:
        return None
    return timedelta(seconds=max(0.0, control.grace - PATIENCE))


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _endless(run: Coroutine[Any, Any, None]) -> None:
    """Run something the others cannot do without: should it ever end, they end too."""
    try:
        await run
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
    raise RuntimeError(f"{run} ended by itself")
