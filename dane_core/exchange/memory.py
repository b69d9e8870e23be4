"""An exchange within one process: the same behaviour as RabbitMQ's, nothing to install.

Single event loop, no threads. Nothing is written down: what a queue holds is gone with the
process, and the store says what has to be sent again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import heappop, heappush
from itertools import count, takewhile
from typing import Final, NamedTuple

from dane_core.errors import ExchangeUnreachable, NotFound
from dane_core.exchange.base import (
    INBOX_PREFETCH,
    Delivery,
    Depth,
    Fate,
    Restorations,
    Subscription,
)
from dane_core.message import Envelope
from dane_core.routing import MAX_PRIORITY, matches

#: Routing keys whose queues are remembered. Clients choose media types, so it has an end.
_ROUTES_REMEMBERED: Final = 4096


class MemoryExchange:
    """Queues, bindings and inboxes in this process."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._inboxes: dict[str, _Queue] = {}
        self._routes: dict[str, tuple[_Queue, ...]] = {}
        self._restorations = Restorations()

    async def publish(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        fates = [_put(self._route(key), envelope) for key, envelope in messages]
        await asyncio.sleep(0)  # whoever publishes in a loop must let the consumers run
        return fates

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        return await self.send_each([(queue, envelope) for envelope in envelopes])

    async def send_each(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        fates = []
        for queue, envelope in messages:
            target = self._find(queue)
            fates.append(_put((target,) if target else (), envelope))
        await asyncio.sleep(0)
        return fates

    async def broadcast(self, envelope: Envelope) -> None:
        _put(tuple(self._inboxes.values()), envelope)
        await asyncio.sleep(0)

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        self._queues.setdefault(queue, _Queue()).bindings.update(bindings)
        self._routes.clear()

    def consume(self, queue: str, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        return self._consume(queue, prefetch)

    def listen(self, inbox: str) -> AbstractAsyncContextManager[Subscription]:
        return self._listen(inbox)

    async def depth(self, queue: str) -> Depth | None:
        found = self._find(queue)
        return found.depth if found else None

    async def delete_queue(self, queue: str) -> None:
        found = self._queues.get(queue)
        if found is None:
            return
        if found.consumers:
            found.empty()
            self._restorations.tell()
        else:
            del self._queues[queue]
            self._routes.clear()

    @property
    def connected(self) -> bool:
        return True

    @property
    def blocked(self) -> str:
        return ""

    def reconnections(self) -> AsyncIterator[None]:
        return self._restorations.watch()

    def _find(self, queue: str) -> "_Queue | None":
        return self._queues.get(queue) or self._inboxes.get(queue)

    def _route(self, key: str) -> "tuple[_Queue, ...]":
        try:
            return self._routes[key]
        except KeyError:
            if len(self._routes) >= _ROUTES_REMEMBERED:
                self._routes.clear()
            route = tuple(queue for queue in self._queues.values() if queue.is_bound(key))
            self._routes[key] = route
            return route

    @asynccontextmanager
    async def _consume(self, queue: str, prefetch: int) -> AsyncIterator[Subscription]:
        try:
            subscription = _Subscription(self._queues[queue], prefetch)
        except KeyError:
            raise NotFound("queue", queue) from None
        try:
            yield subscription
        finally:
            subscription.leave()

    @asynccontextmanager
    async def _listen(self, inbox: str) -> AsyncIterator[Subscription]:
        queue = self._inboxes[inbox] = _Queue()
        subscription = _Subscription(queue, INBOX_PREFETCH)
        try:
            yield subscription
        finally:
            self._inboxes.pop(inbox, None)
            subscription.leave()


class _Message(NamedTuple):
    """What waits in a queue; sorted by its first two members, which no two share."""

    rank: int  # the higher the priority, the lower
    order: int  # of arrival; kept when the message goes back
    envelope: Envelope
    redelivered: bool = False


class _Queue:
    """Messages by priority, then age; consumers in turn. Cost per message is a heap's."""

    def __init__(self) -> None:
        self.bindings: set[str] = set()
        self.consumers: set[_Subscription] = set()
        self._waiting: list[_Message] = []
        self._hungry: deque[_Subscription] = deque()  # exactly the consumers with room
        self._order = count()

    @property
    def depth(self) -> Depth:
        return Depth(waiting=len(self._waiting), consumers=len(self.consumers))

    def is_bound(self, key: str) -> bool:
        return any(matches(binding, key) for binding in self.bindings)

    def put(self, envelope: Envelope) -> None:
        rank = -min(envelope.priority, MAX_PRIORITY)
        heappush(self._waiting, _Message(rank, next(self._order), envelope))
        self._serve()

    def put_back(self, messages: Iterable[_Message]) -> None:
        """Take back what a consumer had, each message to its old place."""
        for message in messages:
            heappush(self._waiting, message._replace(redelivered=True))
        self._serve()

    def feed(self, consumer: "_Subscription") -> None:
        """Give messages also to this consumer, who is new or has room again."""
        self._hungry.append(consumer)
        self._serve()

    def remove(self, consumer: "_Subscription") -> None:
        self.consumers.discard(consumer)
        if consumer in self._hungry:
            self._hungry.remove(consumer)

    def empty(self) -> None:
        """Forget every message, also those in the hands of consumers."""
        self._waiting.clear()
        for consumer in self.consumers:
            consumer.drop_all()
        self._hungry = deque(self.consumers)

    def _serve(self) -> None:
        while self._waiting and self._hungry:
            consumer = self._hungry.popleft()
            consumer.receive(heappop(self._waiting))
            if consumer.has_room:
                self._hungry.append(consumer)


class _Subscription:
    def __init__(self, queue: _Queue, prefetch: int) -> None:
        if prefetch < 1:
            raise ValueError(f"prefetch {prefetch}: a consumer needs room for one delivery")
        self._queue = queue
        self._prefetch = prefetch
        self._tags = count(1)
        self._arrived: deque[Delivery] = deque()
        self._unsettled: dict[int, _Message] = {}
        self._news = asyncio.Event()
        self._left = False
        queue.consumers.add(self)
        queue.feed(self)

    @property
    def has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def receive(self, message: _Message) -> None:
        tag = next(self._tags)
        self._unsettled[tag] = message
        self._arrived.append(
            Delivery(envelope=message.envelope, tag=tag, redelivered=message.redelivered)
        )
        self._news.set()

    async def take(self, limit: int) -> Sequence[Delivery]:
        while not self._arrived:
            if self._left:
                raise ExchangeUnreachable("this subscription was left")
            self._news.clear()
            await self._news.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def ack(self, delivery: Delivery) -> None:
        self._settle([delivery.tag])

    async def ack_through(self, delivery: Delivery) -> None:
        # Tags rise, so the unsettled ones up to this are at the front.
        self._settle(list(takewhile(lambda tag: tag <= delivery.tag, self._unsettled)))

    async def ack_last(self, delivery: Delivery) -> None:
        self._queue.remove(self)
        self._left = True
        self._settle([delivery.tag])

    async def nack(self, delivery: Delivery) -> None:
        self._settle([delivery.tag], undone=True)

    def drop_all(self) -> None:
        """The queue was deleted: its messages are nobody's any more."""
        self._arrived.clear()
        self._unsettled.clear()

    def leave(self) -> None:
        self._left = True
        self._news.set()
        self._queue.remove(self)
        messages = list(self._unsettled.values())
        self.drop_all()
        self._queue.put_back(messages)

    def _settle(self, tags: Iterable[int], *, undone: bool = False) -> None:
        was_full = not self.has_room
        settled = [self._unsettled.pop(tag) for tag in tags if tag in self._unsettled]
        if undone:
            self._queue.put_back(settled)
        if was_full and self.has_room and not self._left:
            self._queue.feed(self)


def _put(queues: Iterable[_Queue], envelope: Envelope) -> Fate:
    fate = Fate.UNROUTABLE
    for queue in queues:
        queue.put(envelope)
        fate = Fate.ROUTED
    return fate
