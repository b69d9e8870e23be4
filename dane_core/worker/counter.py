"""The counter of one task key: takes its tasks from the queue and has them done."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

from dane_core.errors import BadMessage, ExchangeUnreachable, NotFound, QueueMismatch
from dane_core.exchange.base import Delivery, Exchange, Fate, Subscription
from dane_core.job import TaskId
from dane_core.message import Envelope, TaskMessage, open_task
from dane_core.routing import DEAD_QUEUE, binding_keys, work_queue
from dane_core.worker.attempt import Attempt, Desk, either
from dane_core.worker.inbox import Inbox
from dane_core.worker.place import Place
from dane_core.worker.worker import Worker

logger = logging.getLogger(__name__)

#: A delivery that finds every slot taken waits this long, in seconds, before it goes back.
_LOOKAHEAD: Final = 1.0
#: A lane that has a slot before it has a task looks this long, in seconds.
_GLANCE: Final = 0.2
#: Before something that failed is tried again, in seconds.
_PAUSE: Final = 1.0


class Slots:
    """How many tasks may run at once, over all keys; the first to want one gets it first."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._semaphore = asyncio.Semaphore(number)

    async def claim(self) -> None:
        await self._semaphore.acquire()

    async def claim_soon(self) -> bool:
        if not self._semaphore.locked():  # there is nothing to wait for, nor to time
            await self.claim()
            return True
        try:
            async with asyncio.timeout(_LOOKAHEAD):
                await self.claim()
        except TimeoutError:
            return False
        return True

    def release(self) -> None:
        self._semaphore.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What all counters of a worker process share."""

    exchange: Exchange
    desk: Desk
    inbox: Inbox
    slots: Slots
    running: dict[tuple[TaskId, int], Attempt]


class Counter:
    """Serves one key, in as many lanes as may be busy at once.

    A lane consumes with a prefetch of one, and not at all once its task goes on without its
    message. So what is held never exceeds what runs by more than a moment: other tasks wait in
    the queue, where any worker finds them, and not here.
    """

    def __init__(self, worker: type[Worker], place: Place, floor: Floor, lanes: int) -> None:
        self.worker = worker
        self.place = place
        self.floor = floor
        self.queue = work_queue(worker.key)
        self.consuming = asyncio.Event()
        self._lanes = lanes
        self._open = asyncio.Event()
        self._open.set()
        self._closed = False
        self.waits: set[asyncio.Timeout] = set()

    async def declare(self) -> None:
        """Make the queue and bind it. Raises: QueueMismatch, ExchangeUnreachable."""
        bindings = binding_keys(self.worker.key, tuple(self.worker.types))
        await self.floor.exchange.declare_queue(self.queue, bindings)

    async def run(self) -> None:
        """Serve until closed, and until what was running then is done."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(self._lanes):
                lanes.create_task(_Lane(self).run())

    @property
    def takes_tasks(self) -> bool:
        return self._open.is_set() and not self._closed

    def pause(self) -> None:
        """Take no more tasks for now; what runs goes on."""
        self._open.clear()
        self._interrupt()

    def resume(self) -> None:
        self._open.set()

    def close(self) -> None:
        """Take no more tasks at all; what runs goes on."""
        self._closed = True
        self._open.set()  # whoever waits for it need not
        self._interrupt()

    async def opened(self) -> bool:
        """Wait out a pause; false once closed."""
        await self._open.wait()
        return not self._closed

    def until_interrupted(self, within: float | None = None) -> "_Wait":
        """Wait for something inside; TimeoutError when no more tasks are taken, or in time."""
        return _Wait(self, within)

    async def rest(self) -> None:
        """A pause before something that failed is tried again."""
        with suppress(TimeoutError):
            async with self.until_interrupted():
                await asyncio.sleep(_PAUSE)

    def _interrupt(self) -> None:
        now = asyncio.get_running_loop().time()
        for wait in self.waits:
            wait.reschedule(now)


class _Wait:
    """See `Counter.until_interrupted`. Not a generator: each task comes by."""

    def __init__(self, counter: Counter, within: float | None) -> None:
        self._counter = counter
        self._timeout = asyncio.timeout(within)

    async def __aenter__(self) -> None:
        if not self._counter.takes_tasks:
            raise TimeoutError
        await self._timeout.__aenter__()
        self._counter.waits.add(self._timeout)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._counter.waits.discard(self._timeout)
        await self._timeout.__aexit__(kind, fault, trace)


class _Lane:
    """Takes and does one task after another, and steps aside while others need the slots."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._floor = counter.floor
        self._has_slot = False
        self._leased: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while await self._counter.opened():
                await self._attend()
                if self._leased is not None:
                    await self._see_through(self._leased)
                if not self._counter.takes_tasks:
                    self._give_slot()
        finally:
            if self._leased is not None:
                await _end(self._leased)
            self._give_slot()

    async def _attend(self) -> None:
        """Consume the queue until interrupted, or until there is no slot for a task."""
        try:
            async with self._floor.exchange.consume(self._counter.queue, prefetch=1) as queue:
                self._counter.consuming.set()
                crowded_out = await self._serve(queue)
        except NotFound:
            await self._declare_again()
        except ExchangeUnreachable:
            await self._counter.rest()
        else:
            if crowded_out:
                await self._wait_turn()

    async def _serve(self, queue: Subscription) -> bool:
        """Do task after task, until one goes on without its message.

        True, with the delivery going back, when no slot was free.
        """
        while (held := await self._next(queue)) is not None:
            if not await self._claim_slot():
                return True
            if not self._counter.takes_tasks:
                break
            settled = await self._handle(held)
            if self._leased is not None:
                break
            self._give_slot()
            if not settled:
                await self._counter.rest()
                await held.nack()
        return False

    async def _next(self, queue: Subscription) -> "_Held | None":
        while self._counter.takes_tasks:
            with suppress(TimeoutError):
                async with self._counter.until_interrupted(_GLANCE if self._has_slot else None):
                    (delivery,) = await queue.take(1)
                    return _Held(queue, delivery)
            self._give_slot()  # nothing in the queue: whoever else waits for a slot may have it
        return None

    async def _handle(self, held: "_Held") -> bool:
        """Do with a delivery what is to be done. False if that could not be found out."""
        try:
            message = _read(held.envelope, self._counter.worker.key)
        except BadMessage as fault:
            return await self._bury(held, fault)
        twin = self._floor.running.get(_try_of(message))
        outbox = self._floor.desk.outbox
        if twin is None and held.redelivered and await outbox.deliver_kept(message.ticket):
            await held.ack()
            return True
        if twin is None and (held.redelivered or self._floor.inbox.is_doubtful(message)):
            verdict = await self._floor.inbox.ask(message.ticket, redelivered=held.redelivered)
            if verdict is None:
                logger.info("task %s waits: no server says if it may run", message.ticket.task_id)
                return False
            if not verdict.run:
                logger.info("task %s is dropped: %s", message.ticket.task_id, verdict.reason)
                await held.ack()
                return True
            twin = self._floor.running.get(_try_of(message))  # that began meanwhile
        if twin is not None:
            return await self._leave_to(twin, held)
        await self._attempt(message, held)
        return True

    async def _attempt(self, message: TaskMessage, held: "_Held") -> None:
        attempt = Attempt(
            message,
            self._counter.worker,
            self._counter.place,
            self._floor.desk,
            delivered=held.delivered,
        )
        running, name = self._floor.running, _try_of(message)
        running[name] = attempt
        life = asyncio.create_task(attempt.live())
        life.add_done_callback(lambda _: running.pop(name))
        try:
            await either(life, attempt.leased)
        except asyncio.CancelledError:
            await _end(life)  # before its message goes to somebody else
            await self._settle(attempt, held)
            raise
        if life.done():
            life.result()
            await self._settle(attempt, held)
        else:
            self._leased = life
            await held.ack_last()

    async def _settle(self, attempt: Attempt, held: "_Held") -> None:
        if attempt.answered.done() and attempt.answered.result():
            await held.ack()

    async def _see_through(self, life: "asyncio.Task[None]") -> None:
        """Keep the slot of a task that goes on without its message; take no other meanwhile."""
        await asyncio.wait({life})
        self._leased = None
        self._give_slot()
        life.result()

    async def _leave_to(self, twin: Attempt, held: "_Held") -> bool:
        """This very attempt runs here; its message came again, as after a lost connection."""
        twin.hand_off()
        await either(twin.leased, twin.answered)
        if twin.leased.done() or twin.answered.result():
            await held.ack()
            return True
        return False

    async def _bury(self, held: "_Held", fault: BadMessage) -> bool:
        """Put a message nobody can read where people find it; it would come back for ever."""
        logger.error("a message in %s is not a task: %s", self._counter.queue, fault)
        headers = {**held.envelope.headers, "fault": str(fault)[:500], "from": self._counter.queue}
        dead = replace(held.envelope, headers=headers)
        (fate,) = await self._floor.exchange.send(DEAD_QUEUE, [dead])
        if fate is Fate.ROUTED:
            await held.ack()
        return fate is Fate.ROUTED

    async def _declare_again(self) -> None:
        try:
            await self._counter.declare()
        except (ExchangeUnreachable, QueueMismatch) as fault:
            logger.warning("%s", fault)
            await self._counter.rest()

    async def _claim_slot(self) -> bool:
        if not self._has_slot:
            self._has_slot = await self._floor.slots.claim_soon()
        return self._has_slot

    async def _wait_turn(self) -> None:
        with suppress(TimeoutError):
            async with self._counter.until_interrupted():
                await self._floor.slots.claim()
                self._has_slot = True

    def _give_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._floor.slots.release()


class _Held:
    """A delivery in our hands."""

    def __init__(self, subscription: Subscription, delivery: Delivery) -> None:
        self.envelope: Envelope = delivery.envelope
        self.redelivered = delivery.redelivered
        self.delivered = asyncio.get_running_loop().time()
        self._subscription = subscription
        self._delivery = delivery

    # Without a connection there is nothing to settle: the message is in the queue again.

    async def ack(self) -> None:
        with suppress(ExchangeUnreachable):
            await self._subscription.ack(self._delivery)

    async def ack_last(self) -> None:
        with suppress(ExchangeUnreachable):
            await self._subscription.ack_last(self._delivery)

    async def nack(self) -> None:
        with suppress(ExchangeUnreachable):
            await self._subscription.nack(self._delivery)


async def _end(life: "asyncio.Task[None]") -> None:
    life.cancel()
    await asyncio.wait({life})


def _read(envelope: Envelope, key: str) -> TaskMessage:
    message = open_task(envelope)
    if message.key != key:
        raise BadMessage(f"a task of {message.key} in the queue of {key}")
    return message


def _try_of(message: TaskMessage) -> tuple[TaskId, int]:
    return message.ticket.task_id, message.ticket.attempt
