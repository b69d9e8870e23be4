"""Sends messages to RabbitMQ in confirmed windows, and says what became of each."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from aio_pika.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from aiormq import Channel, spec
from aiormq.exceptions import ChannelAccessRefused

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.line import Line, answer_within
from dane_core.exchange.amqp.window import Parcel, post, why_closed
from dane_core.exchange.base import Fate
from dane_core.message import Envelope

logger = logging.getLogger(__name__)

#: Unconfirmed messages of one publish; more are not faster, and all of these may turn unknown.
_WINDOW: Final = 200
#: Bytes of one publish, about. A body the broker finds too large costs its whole channel: one
#: that is larger than this gets a channel of its own.
_LARGE: Final = 1024 * 1024
#: The name of a queue that nobody makes.
_NOWHERE: Final = "dane.nowhere"
_TRANSIENT: Final = 1
_PERSISTENT: Final = 2


class Publisher:
    """Publishes over one channel, opened again when it is lost.

    `on_missing` is called when the broker does not know the exchange published to. `refused` is
    why it would not let us publish the last time; empty when it did.
    """

    def __init__(self, line: Line, *, on_missing: Callable[[], None]) -> None:
        self.refused = ""
        self._line = line
        self._on_missing = on_missing
        self._opening = asyncio.Lock()
        self._channel: Channel | None = None
        self._fault = ""  # of the latest message without an answer, if the library told one
        self._told = ""

    async def publish(
        self, exchange: str, messages: Sequence[tuple[str, Envelope]]
    ) -> Sequence[Fate]:
        now = datetime.now(UTC)
        fates: list[Fate] = []
        for some in _windows(messages):
            window = [
                Parcel(exchange, key, envelope.body, _properties(envelope, now, _PERSISTENT))
                for key, envelope in some
            ]
            told, answered = await self._send_all(window)
            fates += told
            if not answered:
                break
        fates += [Fate.UNKNOWN] * (len(messages) - len(fates))
        if unknown := fates.count(Fate.UNKNOWN):
            self._tell(unknown, len(messages))
        elif fates:
            self._told = ""
        return fates

    async def broadcast(self, exchange: str, envelope: Envelope) -> None:
        """Publish for whoever listens. Raises: ExchangeUnreachable."""
        properties = _properties(envelope, datetime.now(UTC), _TRANSIENT)
        try:
            async with answer_within(self._line.patience):
                channel = await self._open()
                await channel.basic_publish(envelope.body, exchange=exchange, properties=properties)
        except ExchangeUnreachable as loss:
            self._learn_from(loss.__cause__)
            raise

    async def probe(self) -> None:
        """Send what goes nowhere: the broker tells of an alarm only those who publish."""
        nothing = _properties(Envelope(type="probe", body=b""), datetime.now(UTC), _TRANSIENT)
        await self._send_all([Parcel("", _NOWHERE, b"", nothing)])

    async def _send_all(self, window: Sequence[Parcel]) -> tuple[list[Fate], bool]:
        """Send at once; the fate of each, and whether the broker had a word on every one."""
        try:
            if len(window) == 1 and len(window[0].body) > _LARGE:
                return await self._send_alone(window)
            async with answer_within(self._line.patience):  # others may be opening it for long
                channel = await self._open()
            return await self._send_over(channel, window)
        except ExchangeUnreachable as fault:
            self._fault = str(fault)
            return [Fate.UNKNOWN] * len(window), False

    async def _send_alone(self, window: Sequence[Parcel]) -> tuple[list[Fate], bool]:
        channel = await self._line.channel(confirms=True)
        try:
            return await self._send_over(channel, window)
        finally:
            await self._line.close(channel)

    async def _send_over(
        self, channel: Channel, window: Sequence[Parcel]
    ) -> tuple[list[Fate], bool]:
        async with answer_within(2 * self._line.patience):
            confirmations = await post(channel, window, self._line.patience)
        fates = [self._fate(confirmation) for confirmation in confirmations]
        if channel.is_closed:
            self._learn_from(why_closed(channel))
        else:
            self.refused = ""
        answered = all(not confirmation.cancelled() for confirmation in confirmations)
        return fates, answered and not channel.is_closed

    def _fate(self, confirmation: "asyncio.Future[object]") -> Fate:
        if confirmation.cancelled():
            return Fate.UNKNOWN
        match confirmation.exception():
            case None:
                return Fate.ROUTED
            case PublishError():
                return Fate.UNROUTABLE
            case DeliveryError():  # a nack
                return Fate.REFUSED
            case fault:
                raise fault

    async def _open(self) -> Channel:
        if self._channel is not None and not self._channel.is_closed:
            return self._channel
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._line.channel(confirms=True)
            return self._channel

    def _tell(self, unknown: int, number: int) -> None:
        """Log why there was no answer: once, until there is one again."""
        blocked = self._line.blocked and f"it is blocked ({self._line.blocked})"
        why, self._fault = blocked or self._fault or "no answer in time", ""
        if self._told != why:
            logger.warning("RabbitMQ did not confirm %d of %d messages: %s", unknown, number, why)
            self._told = why

    def _learn_from(self, fault: BaseException | None) -> None:
        self._fault = str(fault) if fault else ""
        if isinstance(fault, ChannelNotFoundEntity):
            self._on_missing()
        if isinstance(fault, ChannelAccessRefused):
            self.refused = str(fault)


def _windows(
    messages: Sequence[tuple[str, Envelope]],
) -> Iterator[Sequence[tuple[str, Envelope]]]:
    """Cut into what goes out at once, in order; a large message goes alone."""
    start = size = 0
    for place, (_, envelope) in enumerate(messages):
        length = len(envelope.body)
        if place > start and (place - start == _WINDOW or size + length > _LARGE):
            yield messages[start:place]
            start, size = place, 0
        size += length
    if messages:
        yield messages[start:]


def _properties(envelope: Envelope, now: datetime, mode: int) -> spec.Basic.Properties:
    return spec.Basic.Properties(
        content_type="application/json",
        headers=dict(envelope.headers),
        delivery_mode=mode,
        priority=envelope.priority,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        # Returned messages are matched by this id: used twice, it would swap two outcomes.
        message_id=uuid4().hex,
        timestamp=now,
        message_type=envelope.type,
    )
