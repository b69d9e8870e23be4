"""The contract of an exchange. `amqp` and `memory` keep it alike; tests/contracts says how."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from dane_core.message import Envelope

#: Control messages a listener may hold unsettled.
INBOX_PREFETCH: Final = 100


class Fate(Enum):
    """What became of a message that was given to an exchange."""

    ROUTED = auto()  # confirmed: at least one queue has it
    UNROUTABLE = auto()  # confirmed: no queue is bound to its routing key
    REFUSED = auto()  # a queue would not have it: it is full, or gone wrong
    UNKNOWN = auto()  # no word in time: it may or may not have arrived, or arrive much later


@dataclass(frozen=True, slots=True)
class Depth:
    """A queue at this moment: messages waiting in it, and its consumers.

    Messages that a consumer holds unsettled are not waiting.
    """

    waiting: int
    consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message in the hands of one consumer, until settled.

    `tag` counts the deliveries of its subscription, from 1. `redelivered` means that some
    consumer may have seen this message before; false means nothing.
    """

    envelope: Envelope
    tag: int
    redelivered: bool


class Subscription(Protocol):
    """A consumer of one queue. It holds at most `prefetch` unsettled deliveries.

    It outlives a lost connection: it consumes again by itself once the exchange is back, and
    deliveries taken before are then in other hands; settling them does nothing. Settling one
    twice does nothing either.
    """

    async def take(self, limit: int) -> Sequence[Delivery]:
        """Wait for at least one delivery; return what has arrived, `limit` at most, in order.

        Waits through a lost connection. A take that is cancelled loses nothing.
        Raises: ExchangeUnreachable, once the subscription was left.
        """

    async def ack(self, delivery: Delivery) -> None:
        """This message is dealt with."""

    async def ack_through(self, delivery: Delivery) -> None:
        """This message and every earlier unsettled one of the subscription are dealt with."""

    async def ack_last(self, delivery: Delivery) -> None:
        """This message is dealt with, and no other is wanted in its place: leave after this."""

    async def nack(self, delivery: Delivery) -> None:
        """Not dealt with: back to its place in the queue, for anyone."""


class Exchange(Protocol):
    """A topic exchange for tasks, named queues, and a fanout for control.

    Every verb raises `ExchangeUnreachable` when there is no connection; `publish` and `send`
    report `Fate.UNKNOWN` instead, message by message, so that no outcome is ever lost.
    """

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        """Send tasks, each to the queues bound to its routing key; outcomes in the same order.

        Messages are persistent, mandatory and confirmed, and go out in windows, in order. When
        a window gets no answer, the rest is not sent and is `UNKNOWN` too. Cancelling leaves
        open which were sent.
        """

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        """Send to one queue by its name, persistent, mandatory and confirmed."""

    async def send_each(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        """Send each message to the queue named with it, all in one go, otherwise like `send`."""

    async def broadcast(self, envelope: Envelope) -> None:
        """Say something to every worker that listens now. Nothing is kept for later."""

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        """Make a durable priority queue if it is missing, and bind it to the task exchange.

        Bindings are added to those it has. Made again by itself after a broker was wiped.
        Raises: QueueMismatch, when it exists with other arguments.
        """

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        """Consume a declared queue; on leaving, unsettled deliveries go back to it.

        Consumers of one queue take turns. Raises: NotFound, when there is no such queue.
        """

    def listen(self, inbox: str) -> AbstractAsyncContextManager[Subscription]:
        """Make an exclusive queue `inbox` that gets every broadcast and what is sent to it.

        It and its messages are gone when the listener leaves or its connection is lost.
        """

    async def depth(self, queue: str) -> Depth | None:
        """How full a queue is; None when there is no such queue."""

    async def delete_queue(self, queue: str) -> None:
        """Remove a queue and what is in it. Absent is fine.

        One that is still consumed is made again at once, empty, by its consumers; what they
        held of it is gone.
        """

    @property
    def connected(self) -> bool:
        """Whether the exchange can be used now."""

    @property
    def blocked(self) -> str:
        """Why the broker takes no messages now; empty when it does.

        An alarm (memory, disk), or a right that was taken away. What is published during an
        alarm may arrive once that is over, however late.
        """

    def reconnections(self) -> AsyncIterator[None]:
        """Yields each time that messages may have been lost and everything is declared again.

        That is: the connection has come back, or a consumed queue that had vanished was made
        again. Counted from the call; several in a row may be told as one.
        """


class Restorations:
    """Tells those who wait each time that something lost was made again."""

    def __init__(self) -> None:
        self._count = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    def watch(self) -> AsyncIterator[None]:
        """Yields for every restoration after this call; several in a row may be told as one."""
        return self._since(self._count)

    async def _since(self, seen: int) -> AsyncIterator[None]:
        while True:
            while self._count == seen:
                await self._next.wait()
            seen = self._count
            yield
