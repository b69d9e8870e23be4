"""Sends messages to RabbitMQ in confirmed windows, and says what became of each."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import uuid4

from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelNotFoundEntity,
    DeliveryError,
    PublishError,
)
from aiormq import Channel, spec

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.line import Line, answer_within, cancellations
from dane_core.exchange.base import Fate
from dane_core.message import Envelope

logger = logging.getLogger(__name__)

#: Unconfirmed messages of one publish; more are not faster, and all of these may turn unknown.
_WINDOW: Final = 200
#: A body the broker finds too large costs its whole channel: larger ones get one of their own.
_LARGE: Final = 1024 * 1024
#: The name of a queue that nobody makes.
_NOWHERE: Final = "dane.nowhere"
_TRANSIENT: Final = 1
_PERSISTENT: Final = 2


class _Parcel(NamedTuple):
    """A message as it is handed to the broker."""

    exchange: str
    key: str
    body: bytes
    properties: spec.Basic.Properties


class Publisher:
    """Publishes over one channel, opened again when it is lost.

    `on_missing` is called when the broker does not know the exchange published to.
    """

    def __init__(self, line: Line, *, on_missing: Callable[[], None]) -> None:
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
        for start in range(0, len(messages), _WINDOW):
            window = [
                _Parcel(exchange, key, envelope.body, _properties(envelope, now, _PERSISTENT))
                for key, envelope in messages[start : start + _WINDOW]
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
        await self._send_all([_Parcel("", _NOWHERE, b"", nothing)])

    async def _send_all(self, window: Sequence[_Parcel]) -> tuple[list[Fate], bool]:
        """Send at once; the fate of each, and whether the broker had a word on every one."""
        try:
            async with answer_within(self._line.patience):  # others may be opening it for long
                channel = await self._open()
        except ExchangeUnreachable as fault:
            self._fault = str(fault)
            return [Fate.UNKNOWN] * len(window), False
        sendings = [asyncio.create_task(self._send(channel, parcel)) for parcel in window]
        try:
            _, silent = await asyncio.wait(sendings, timeout=self._line.patience)
        finally:
            for sending in sendings:
                sending.cancel()
        fates = [Fate.UNKNOWN if each in silent else each.result() for each in sendings]
        return fates, not silent and not channel.is_closed

    async def _send(self, channel: Channel, parcel: _Parcel) -> Fate:
        if len(parcel.body) > _LARGE and channel is self._channel:
            return await self._send_alone(parcel)
        try:
            await channel.basic_publish(
                parcel.body,
                exchange=parcel.exchange,
                routing_key=parcel.key,
                properties=parcel.properties,
                mandatory=True,
                wait=False,
            )
        except PublishError:
            return Fate.UNROUTABLE
        except DeliveryError:  # a nack
            return Fate.REFUSED
        except asyncio.CancelledError:
            if cancellations():
                raise
            return Fate.UNKNOWN
        except CONNECTION_EXCEPTIONS as fault:
            self._fault = str(fault) or type(fault).__name__
            self._learn_from(fault)
            return Fate.UNKNOWN
        return Fate.ROUTED

    async def _send_alone(self, parcel: _Parcel) -> Fate:
        try:
            channel = await self._line.channel(confirms=True)
        except ExchangeUnreachable:
            return Fate.UNKNOWN
        try:
            return await self._send(channel, parcel)
        finally:
            await self._line.close(channel)

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
        if isinstance(fault, ChannelNotFoundEntity):
            self._on_missing()


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
