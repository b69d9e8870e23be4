"""One consumer on RabbitMQ, through every channel it is given in its life."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import cast

from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity
from aiormq import Channel
from aiormq.abc import DeliveredMessage

from dane_core.errors import ExchangeUnreachable, NotFound
from dane_core.exchange.amqp.line import Line, answer_within, last_word
from dane_core.exchange.base import Delivery
from dane_core.message import Envelope


class AmqpSubscription:
    """Consumes over a channel of its own, and over another one when that is gone.

    `on_loss` is called when consuming has ended without being asked to.
    """

    def __init__(
        self, line: Line, queue: str, prefetch: int, *, on_loss: Callable[[], None]
    ) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch {prefetch}: a consumer needs room for one delivery")
        self.queue = queue
        self.consuming = False
        self._line = line
        self._prefetch = prefetch
        self._on_loss = on_loss
        self._channel: Channel | None = None
        self._consumer = ""  # its tag there
        self._earlier = 0  # deliveries over earlier channels
        self._latest = 0  # over all
        self._arrived: deque[Delivery] = deque()
        self._unsettled: dict[int, None] = {}  # tags, rising
        self._news = asyncio.Event()
        self._left = False
        self._retired = False  # wants no more, though its channel is open

    @property
    def heard(self) -> int:
        """How many deliveries have come, over all channels."""
        return self._latest

    @property
    def is_hungry(self) -> bool:
        """Whether the broker should give it what the queue has."""
        has_room = len(self._unsettled) < self._prefetch
        return self.consuming and has_room and not self._retired

    async def attach(self) -> None:
        """Consume, over a fresh channel. Raises: NotFound, ExchangeUnreachable."""
        await self.detach()
        channel = self._channel = await self._line.channel()
        channel.on_consumer_cancel_callbacks.add(lambda _: self._lose(channel))
        channel.closing.add_done_callback(lambda _: self._lose(channel))
        try:
            async with answer_within(2 * self._line.patience):  # for two answers
                await channel.basic_qos(prefetch_count=self._prefetch)
                consumer = await channel.basic_consume(self.queue, self._receive)
                self._consumer = consumer.consumer_tag or ""
        except ExchangeUnreachable as loss:
            await self.detach()
            if isinstance(loss.__cause__, ChannelNotFoundEntity):
                raise NotFound("queue", self.queue) from None
            raise
        except asyncio.CancelledError:
            await self.detach()
            raise
        self.consuming = True
        if self._left:
            await self.detach()
        elif channel.is_closed or not channel.consumers:
            self._lose(channel)

    async def take(self, limit: int) -> Sequence[Delivery]:
        while not self._arrived:
            if self._left:
                raise ExchangeUnreachable("this subscription was left")
            self._news.clear()
            await self._news.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def ack(self, delivery: Delivery) -> None:
        if channel := self._settle([delivery.tag]):
            tag = delivery.tag - self._earlier
            if channel.write_queue.full():
                async with last_word():
                    await channel.basic_ack(tag, wait=False)
            else:  # it waits for nothing then, and to time it costs more than all the rest
                with suppress(*CONNECTION_EXCEPTIONS):
                    await channel.basic_ack(tag, wait=False)

    async def ack_through(self, delivery: Delivery) -> None:
        # Tags rise, so the unsettled ones up to this are at the front.
        tags = list(takewhile(lambda tag: tag <= delivery.tag, self._unsettled))
        if channel := self._settle(tags):
            async with last_word():
                await channel.basic_ack(tags[-1] - self._earlier, multiple=True, wait=False)

    async def ack_last(self, delivery: Delivery) -> None:
        self._retired = True
        # In this order, or the broker would hand out another message for the acked one.
        if channel := self._settle([delivery.tag]):
            async with last_word():
                await channel.basic_cancel(self._consumer, nowait=True)
                await channel.basic_ack(delivery.tag - self._earlier, wait=False)

    async def nack(self, delivery: Delivery) -> None:
        if channel := self._settle([delivery.tag]):
            async with last_word():
                await channel.basic_nack(delivery.tag - self._earlier, requeue=True, wait=False)

    async def detach(self) -> None:
        """Consume no more; what was taken is in other hands now, or nobody's."""
        self._forget()
        channel, self._channel = self._channel, None
        if channel is not None:
            await self._line.close(channel)

    async def leave(self) -> None:
        self._left = True
        self._news.set()
        await self.detach()

    def lose(self) -> None:
        """The broker has forgotten this consumer, whatever its channel says."""
        self._forget()
        self._on_loss()

    def _lose(self, channel: Channel) -> None:
        if channel is self._channel and self.consuming:
            self.lose()

    def _forget(self) -> None:
        self.consuming = False
        self._earlier = self._latest
        self._arrived.clear()
        self._unsettled.clear()

    async def _receive(self, message: DeliveredMessage) -> None:
        # No await here: this runs in a task that dies with the channel.
        if message.channel is not self._channel:
            return
        self._latest = self._earlier + (message.delivery_tag or 0)
        self._unsettled[self._latest] = None
        self._arrived.append(
            Delivery(
                envelope=_open(message), tag=self._latest, redelivered=bool(message.redelivered)
            )
        )
        self._news.set()

    def _settle(self, tags: Sequence[int]) -> Channel | None:
        """Note these as settled; the channel to say so on, if there is anything to say."""
        known = [tag for tag in tags if tag in self._unsettled]
        for tag in known:
            del self._unsettled[tag]
        return self._channel if known else None


def _open(message: DeliveredMessage) -> Envelope:
    properties = message.header.properties
    return Envelope(
        type=properties.message_type or "",
        body=message.body,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        priority=properties.priority or 0,
        headers=cast("dict[str, int | str]", properties.headers or {}),
    )
