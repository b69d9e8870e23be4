"""Exchanges, queues and consumers on a RabbitMQ, made again whenever they are lost."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed
from aiormq import Channel
from aiormq.exceptions import ChannelAccessRefused

from dane_core.errors import ExchangeUnreachable, NotFound, QueueMismatch
from dane_core.exchange.amqp.line import Line, cancellations, open_line
from dane_core.exchange.amqp.publisher import Publisher
from dane_core.exchange.amqp.subscription import AmqpSubscription
from dane_core.exchange.amqp.watchdog import Watchdog
from dane_core.exchange.base import (
    INBOX_PREFETCH,
    Depth,
    Fate,
    Restorations,
    Subscription,
)
from dane_core.message import Envelope
from dane_core.routing import CONTROL_EXCHANGE, MAX_PRIORITY, TASK_EXCHANGE

logger = logging.getLogger(__name__)

#: Queue arguments can never change once a queue exists; everything else is the broker's policy.
_WORK_QUEUE: Final = {"x-queue-type": "classic", "x-max-priority": MAX_PRIORITY}
_INBOX_QUEUE: Final = {"x-queue-type": "classic"}
#: Seconds until the next try, when not everything could be restored.
_RETRY: Final = 1.0
#: Seconds until it is tried again whether we may publish. Each try costs a channel.
_ASK_AGAIN: Final = 5.0
#: Seconds between two tries at least, for something that is lost again at once.
_BREATH: Final = 0.1


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str = "dane",
    task_exchange: str = TASK_EXCHANGE,
    control_exchange: str = CONTROL_EXCHANGE,
    patience: timedelta = timedelta(seconds=5),
    check_every: timedelta = timedelta(seconds=30),
) -> AsyncIterator["AmqpExchange"]:
    """The exchange at an `amqp://` URL, from the first connection to the last delivery.

    `name` is what the broker's operator sees. `patience` is how long one answer of the broker
    is waited for; `check_every`, how often everything is declared again, just in case, and
    every consumer is looked at.
    Raises: ExchangeUnreachable, when the first connection fails; QueueMismatch, when the
    exchanges exist with other types.
    """
    wait = patience.total_seconds()
    async with (
        open_line(url, f"{name} publishing", wait) as publishing,
        open_line(url, f"{name} consuming", wait) as consuming,
    ):
        exchange = AmqpExchange(
            publishing, consuming, tasks=task_exchange, control=control_exchange
        )
        await exchange.declare_exchanges()
        every = check_every.total_seconds()
        keepers = [
            asyncio.create_task(_always(partial(exchange.keep, every))),
            asyncio.create_task(_always(partial(exchange.watch, every))),
        ]
        try:
            yield exchange
        finally:
            exchange.end()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.wait(keepers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """How a queue is declared, and to what it is bound."""

    arguments: Mapping[str, Any]
    exclusive: bool = False
    bindings: frozenset[tuple[str, str]] = field(default_factory=frozenset)  # exchange, key


class AmqpExchange:
    """The contract of `base.Exchange`, on a RabbitMQ. Opened by `connect`."""

    def __init__(self, publishing: Line, consuming: Line, *, tasks: str, control: str) -> None:
        self._publishing = publishing
        self._consuming = consuming
        self._publisher = Publisher(publishing, on_missing=self._notice_loss)
        self._tasks = tasks
        self._control = control
        self._queues: dict[str, _Shape] = {}
        self._subscriptions: set[AmqpSubscription] = set()
        self._lost = asyncio.Event()
        self._untold = False  # something was lost since the last restoration was told
        self._refused = ""  # why the exchanges cannot be declared, as it was logged last
        self._restorations = Restorations()
        self._watchdog = Watchdog(depth=self.depth, reconnect=consuming.reconnect)
        self._closed = False
        publishing.on_back = consuming.on_back = self._notice_loss

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        return await self._publisher.publish(self._tasks, messages)

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        return await self.send_each([(queue, envelope) for envelope in envelopes])

    async def send_each(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        return await self._publisher.publish("", messages)

    async def broadcast(self, envelope: Envelope) -> None:
        await self._publisher.broadcast(self._control, envelope)

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        keys = frozenset((self._tasks, key) for key in bindings)
        shape = _Shape(arguments=_WORK_QUEUE, bindings=keys)
        await self._consuming.ask(partial(_declare_queue, queue, shape))
        known = self._queues.get(queue, shape)
        self._queues[queue] = replace(shape, bindings=known.bindings | keys)

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        return self._consume(
            AmqpSubscription(self._consuming, queue, prefetch, on_loss=self._notice_loss)
        )

    def listen(self, inbox: str) -> AbstractAsyncContextManager[Subscription]:
        return self._listen(inbox)

    async def depth(self, queue: str) -> Depth | None:
        return await self._consuming.ask(partial(_look, queue))

    async def delete_queue(self, queue: str) -> None:
        if not any(subscription.queue == queue for subscription in self._subscriptions):
            self._queues.pop(queue, None)
        await self._consuming.ask(partial(_delete, queue))

    @property
    def connected(self) -> bool:
        return self._has_lines and not self._refused

    @property
    def blocked(self) -> str:
        return self._publishing.blocked or self._publisher.refused

    @property
    def _has_lines(self) -> bool:
        return self._publishing.up and self._consuming.up and not self._closed

    def reconnections(self) -> AsyncIterator[None]:
        return self._restorations.watch()

    async def declare_exchanges(self) -> None:
        """Make both exchanges if they are missing. Raises: QueueMismatch."""
        for name, kind in ((self._tasks, "topic"), (self._control, "fanout")):
            await self._consuming.ask(partial(_declare_exchange, name, kind))

    async def keep(self, check_every: float) -> None:
        """Restore what is lost as soon as that is noticed, and look every so many seconds."""
        pause = check_every
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._lost.wait()
            self._lost.clear()
            pause = check_every if await self._restore() else _RETRY
            await asyncio.sleep(_BREATH)

    def end(self) -> None:
        """From now on there is no connection, whatever still comes of the broker."""
        self._closed = True

    async def watch(self, check_every: float) -> None:
        """Look every so many seconds for consumers that have gone deaf, and for an alarm.

        Whether publishing is still refused is tried more often.
        """
        rested = 0.0
        while True:
            pause = min(check_every, _ASK_AGAIN)
            await asyncio.sleep(pause)
            rested += pause
            if self._publisher.refused or rested >= check_every:
                await self._publisher.probe()
            if rested >= check_every:
                rested = 0.0
                await self._watchdog.check([*self._subscriptions])

    @property
    def cures(self) -> int:
        """How often a consumer was given a new channel or connection because it heard nothing."""
        return self._watchdog.cures

    def _notice_loss(self) -> None:
        self._untold = True
        self._lost.set()

    async def _restore(self) -> bool:
        """Declare everything again and consume again; whether all of it is there now."""
        if not self._has_lines:
            return False
        try:
            await self.declare_exchanges()
        except (ExchangeUnreachable, QueueMismatch) as fault:
            self._note_refusal(fault)
            return False
        self._note_refusal(None)
        # What is lost from here on is the next round's to tell.
        untold, self._untold = self._untold, False
        renewed = [await self._renew(queue) for queue in [*self._queues]]
        mended = [await self._mend(subscription) for subscription in [*self._subscriptions]]
        whole = all(renewed) and all(mended)
        if untold and whole:
            self._restorations.tell()
        elif untold:
            self._untold = True
        return whole

    def _note_refusal(self, fault: ExchangeUnreachable | QueueMismatch | None) -> None:
        """A broker that lets us in, but at nothing there, is one that we do not reach."""
        refused = isinstance(fault, QueueMismatch) or (
            fault is not None and isinstance(fault.__cause__, ChannelAccessRefused)
        )
        why = str(fault) if refused else ""
        if fault is not None and (not refused or why != self._refused):
            logger.warning("exchanges not restored: %s", fault)
        elif fault is None and self._refused:
            logger.warning("exchanges restored")
        self._refused = why

    async def _renew(self, queue: str) -> bool:
        shape = self._queues.get(queue)
        if shape is None:
            return True  # deleted or left meanwhile
        try:
            consumers = await self._consuming.ask(partial(_declare_queue, queue, shape))
        except QueueMismatch as mismatch:
            # Trying again soon is no help: a person must act.
            logger.critical("%s", mismatch)
            return True
        except ExchangeUnreachable as fault:
            logger.warning("queue %s not restored: %s", queue, fault)
            return False
        if consumers == 0:
            self._revive_consumers(queue)
        return True

    def _revive_consumers(self, queue: str) -> None:
        for subscription in self._subscriptions:
            if subscription.queue == queue and subscription.consuming:
                logger.warning("the broker has lost a consumer of %s; consuming again", queue)
                subscription.lose()

    async def _mend(self, subscription: AmqpSubscription) -> bool:
        if subscription.consuming:
            return True
        try:
            await subscription.attach()
        except (ExchangeUnreachable, NotFound) as fault:
            logger.warning("queue %s not consumed: %s", subscription.queue, fault)
            return False
        return True

    @asynccontextmanager
    async def _consume(self, subscription: AmqpSubscription) -> AsyncIterator[Subscription]:
        await subscription.attach()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.leave()

    @asynccontextmanager
    async def _listen(self, inbox: str) -> AsyncIterator[Subscription]:
        control = frozenset({(self._control, "")})
        shape = _Shape(arguments=_INBOX_QUEUE, exclusive=True, bindings=control)
        await self._consuming.ask(partial(_declare_queue, inbox, shape))
        self._queues[inbox] = shape
        try:
            async with self.consume(inbox, prefetch=INBOX_PREFETCH) as subscription:
                yield subscription
        finally:
            self._queues.pop(inbox, None)
            with suppress(ExchangeUnreachable):  # then the broker has removed it already
                await self.delete_queue(inbox)


async def _declare_exchange(name: str, kind: str, channel: Channel) -> None:
    try:
        await channel.exchange_declare(name, exchange_type=kind, durable=True)
    except ChannelPreconditionFailed as fault:
        raise QueueMismatch(name, str(fault), kind="exchange") from None


async def _declare_queue(name: str, shape: _Shape, channel: Channel) -> int:
    """Make a queue and its bindings if they are missing; how many consume it."""
    try:
        declared = await channel.queue_declare(
            name,
            durable=not shape.exclusive,
            exclusive=shape.exclusive,
            arguments=dict(shape.arguments),
        )
    except ChannelPreconditionFailed as fault:
        raise QueueMismatch(name, str(fault)) from None
    for exchange, key in shape.bindings:
        await channel.queue_bind(name, exchange, key)
    return declared.consumer_count or 0


async def _look(name: str, channel: Channel) -> Depth | None:
    try:
        found = await channel.queue_declare(name, passive=True)
    except ChannelNotFoundEntity:
        return None
    return Depth(waiting=found.message_count or 0, consumers=found.consumer_count or 0)


async def _delete(name: str, channel: Channel) -> None:
    await channel.queue_delete(name)


async def _always(run: Callable[[], Awaitable[None]]) -> None:
    """Keep something running until it is cancelled: without it nothing would be restored."""
    while True:
        try:
            await run()
        except asyncio.CancelledError:
            if cancellations():
                raise
            logger.warning("the keeper of a connection to RabbitMQ was cut off; going on")
        except Exception:
            logger.exception("the keeper of a connection to RabbitMQ failed; going on")
        await asyncio.sleep(_RETRY)
