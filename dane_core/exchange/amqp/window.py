"""Many messages to a channel in one write, each with a confirmation of its own.

The library publishes one message at a time: a lock, two timeouts and a write to the socket for
each, which costs more than all the rest of sending it. What is done here is what its
`Channel.basic_publish` does, once for the whole window (see docs/decisions/0015).
"""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

from aiormq import Channel, spec
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.frame import marshal
from pamqp.header import ContentHeader


class Parcel(NamedTuple):
    """A message as it is handed to the broker."""

    exchange: str
    key: str
    body: bytes
    properties: spec.Basic.Properties


async def post(
    channel: Channel, parcels: Sequence[Parcel], patience: float
) -> "list[asyncio.Future[object]]":
    """Hand parcels to a channel, in order and mandatory; their confirmations, in the same order.

    Returns when all are there, the channel has closed, or `patience`, in seconds, has run out.
    One that never came is cancelled; one that failed has the library's PublishError (no queue
    took it) or its DeliveryError (the broker refused it). Raises: ChannelInvalidStateError.
    """
    confirmations = await _hand_over(channel, parcels)

    def give_up(*_: object) -> None:
        for confirmation in confirmations:
            if not confirmation.cancel() and not confirmation.cancelled():
                confirmation.exception()  # seen, should nobody else want to look

    closing = channel.closing
    closing.add_done_callback(give_up)
    try:
        await asyncio.wait(confirmations, timeout=patience)
    finally:
        closing.cancel()  # only our watch over it
        give_up()
        for parcel in parcels:
            channel.message_id_delivery_tag.pop(parcel.properties.message_id or "", None)
    return confirmations


async def _hand_over(channel: Channel, parcels: Sequence[Parcel]) -> "list[asyncio.Future[object]]":
    payload = BytesIO()
    for parcel in parcels:
        _write(payload, channel, parcel)
    frame = ChannelFrame(payload=payload.getvalue(), should_close=False)
    async with channel.lock:
        await channel.write_queue.put(frame)
        # Counted once they are in the queue and not before: who is cancelled while he waits for
        # room there has sent nothing, and from here to the writer nobody else comes between.
        return _expect(channel, [parcel.properties.message_id or "" for parcel in parcels])


def _expect(channel: Channel, message_ids: Sequence[str]) -> "list[asyncio.Future[object]]":
    """The confirmations of the next messages, where the channel itself looks for them."""
    confirmations: dict[int, asyncio.Future[object]] = {}
    for tag, message_id in enumerate(message_ids, channel.delivery_tag + 1):
        confirmations[tag] = channel.loop.create_future()
        channel.message_id_delivery_tag[message_id] = tag
    channel.confirmations.update(confirmations)
    channel.delivery_tag += len(message_ids)
    return list(confirmations.values())


def why_closed(channel: Channel) -> BaseException | None:
    """What ended a closed channel."""
    closing = channel.closing
    return None if closing.cancelled() else closing.exception()


def _write(payload: BytesIO, channel: Channel, parcel: Parcel) -> None:
    payload.write(_method(channel.number, parcel.exchange, parcel.key))
    header = ContentHeader(properties=parcel.properties, body_size=len(parcel.body))
    payload.write(marshal(header, channel.number))
    for start in range(0, len(parcel.body), channel.max_content_size):
        piece = parcel.body[start : start + channel.max_content_size]
        payload.write(marshal(ContentBody(piece), channel.number))


@lru_cache(maxsize=1024)
def _method(channel: int, exchange: str, key: str) -> bytes:
    """The first frame of a message: the same for all with one address."""
    frame = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
    return marshal(frame, channel)
