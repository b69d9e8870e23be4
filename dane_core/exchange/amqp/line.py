"""A connection to RabbitMQ that comes back by itself, and how its silence is told."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from random import uniform
from typing import Any, Final, TypeVar, cast

from aio_pika import RobustConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq import Channel
from aiormq.abc import AbstractConnection
from aiormq.connection import Connection
from yarl import URL

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.overheard import Overheard, OverheardTransport

logger = logging.getLogger(__name__)
T = TypeVar("T")

_HEARTBEAT: Final = 10  # seconds; a silent connection is given up after (10 + 1) * 3
#: To connect, or to open a channel, declare and bind, takes this many answers, one after the
#: other: a slow wire needs the time.
_ANSWERS: Final = 3
#: Seconds between two tries to connect, doubling from the first to the last.
_FIRST_PAUSE: Final = 1.0
_LAST_PAUSE: Final = 15.0
#: Frames that wait for the writer of a connection, or for a channel. The library's own number is
#: 10, so that fifty acknowledgements take five turns of the loop and five packets. It holds
#: nothing back: the writer gives the transport all there is, and prefetch bounds what arrives.
_FRAMES: Final = 1_000
#: Seconds for a last word to the broker, when no answer changes anything any more.
_LAST_WORD: Final = 5.0


class Line:
    """A connection to the broker that comes back by itself.

    `patience` is how many seconds one answer of the broker is waited for. `on_back` is called
    each time the connection is there again.
    """

    def __init__(self, connection: RobustConnection, name: str, patience: float) -> None:
        self.patience = patience
        self.on_back: Callable[[], None] = _nothing
        self._connection = connection
        self._name = name
        self._told = ""  # why there is no connection, as it was logged last
        self._kept = False  # from the first connection until it is left
        self._overheard = Overheard()
        self._desk: Channel | None = None
        self._desk_free = asyncio.Lock()
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._pause = _FIRST_PAUSE
        connection.kwargs["transport_factory"] = OverheardTransport(self._overheard)
        connection.close_callbacks.add(self._wait_longer)
        connection.reconnect_callbacks.add(self._come_back)

    @property
    def up(self) -> bool:
        return self._connection.connected.is_set()

    @property
    def blocked(self) -> str:
        """Why the broker takes no messages over this connection; empty when it does."""
        return self._overheard.blocked if self.up else ""

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel. Raises: ExchangeUnreachable."""
        transport = self._connection.transport
        if transport is None or not self.up:
            raise ExchangeUnreachable("not connected to RabbitMQ")
        async with answer_within(self.patience):
            channel = await transport.connection.channel(
                publisher_confirms=confirms, on_return_raises=True, frame_buffer_size=_FRAMES
            )
            return cast("Channel", channel)

    async def ask(self, question: Callable[[Channel], Awaitable[T]]) -> T:
        """Have a question answered over a channel kept for that, one at a time.

        An error that the broker answers with costs that channel only.
        """
        return await self._apart(self._ask(question))

    async def reconnect(self) -> None:
        """Give up the present connection; another one is made as after a loss."""
        transport = self._connection.transport
        if transport is not None:
            await self._apart(_close_connection(transport.connection))

    def explain(self, fault: BaseException | None) -> str:
        """Why there is no connection: what the broker said last, or else what happened."""
        if self._overheard.closed:
            return self._overheard.closed
        if fault is None or isinstance(fault, asyncio.CancelledError):
            return "it fell silent"
        if isinstance(fault, TimeoutError) and not str(fault):
            return "it did not answer in time"
        return str(fault) or type(fault).__name__

    async def connect(self) -> None:
        """Connect for the first time. Raises: ExchangeUnreachable."""
        patience = _ANSWERS * self.patience
        async with answer_within(patience):
            await self._connection.connect(timeout=patience)
        self._kept = True

    async def leave(self) -> None:
        """Close the connection for good, as far as that can still be done."""
        self._kept = False
        async with last_word():
            await self._connection.close()

    async def close(self, channel: Channel) -> None:
        """Close a channel, as far as that can still be done."""
        await self._apart(_close(channel))

    async def _ask(self, question: Callable[[Channel], Awaitable[T]]) -> T:
        async with answer_within(_ANSWERS * self.patience), self._desk_free:
            channel, self._desk = self._desk, None
            if channel is None or channel.is_closed:
                channel = await self.channel()
            answer = await question(channel)
            self._desk = channel
            return answer

    async def _apart(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish this even when whoever waits for it is cancelled.

        Cancelled half-way, aiormq closes the channel, perhaps for a second time; and a second
        closing that the broker does not expect ends the connection of everyone.
        """
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._finish)
        return await asyncio.shield(task)

    def _finish(self, task: asyncio.Task[Any]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # seen: nobody may be waiting for it any more

    def _wait_longer(self, _: object, fault: BaseException | None = None) -> None:
        # aio-pika calls this for a lost connection and again for every failed try.
        self._tell(fault)
        jitter = uniform(0.75, 1.25)  # noqa: S311 - keeps many workers apart, is no secret
        self._connection.reconnect_interval = self._pause * jitter
        self._pause = min(self._pause * 2, _LAST_PAUSE)

    def _come_back(self, *_: object) -> None:
        self._pause = self._connection.reconnect_interval = _FIRST_PAUSE
        logger.warning("%s: connected to RabbitMQ again", self._name)
        self._told = ""
        self.on_back()

    def _tell(self, fault: BaseException | None) -> None:
        """Log why there is no connection: once, and not with every try."""
        why = self.explain(fault)
        if self._told != why and self._kept:
            logger.warning("%s: no connection to RabbitMQ: %s; trying again", self._name, why)
            self._told = why


@asynccontextmanager
async def open_line(url: str, name: str, patience: float) -> AsyncIterator[Line]:
    """Connect, and stay connected. Raises: ExchangeUnreachable, if the first try fails."""
    Connection.FRAME_BUFFER_SIZE = _FRAMES  # of every connection here: there is no other way in
    address = URL(url)
    settings = {"heartbeat": str(_HEARTBEAT), "name": name} | dict(address.query)
    connection = RobustConnection(address.with_query(settings), reconnect_interval=_FIRST_PAUSE)
    line = Line(connection, name, patience)
    try:
        try:
            await line.connect()
        except ExchangeUnreachable as fault:
            shown = address.with_password("***") if address.password else address
            raise ExchangeUnreachable(f"no RabbitMQ at {shown}: {line.explain(fault)}") from fault
        yield line
    finally:
        await line.leave()


@asynccontextmanager
async def answer_within(patience: float) -> AsyncIterator[None]:
    """Wait so many seconds for the broker, and tell all ways in which it fails to answer as one.

    A lost connection may surface as a cancellation that nobody asked for; and one that somebody
    did ask for is replaced by the library when it meets a closing channel. Both are put right.

    Raises: ExchangeUnreachable, whose cause is the library's error.
    """
    before = cancellations()
    try:
        async with asyncio.timeout(patience):
            yield
    except asyncio.CancelledError:
        if cancellations() > before:
            raise
        raise ExchangeUnreachable("the connection to RabbitMQ was lost") from None
    except TimeoutError as silence:
        _heed(before)
        raise ExchangeUnreachable(f"RabbitMQ did not answer in {patience:g} s") from silence
    except CONNECTION_EXCEPTIONS as fault:
        _heed(before)
        raise ExchangeUnreachable(str(fault) or type(fault).__name__) from fault
    except Exception as fault:
        # Nothing more is what aiormq says to those who wait on a connection that is given up.
        if type(fault) is not Exception:
            raise
        _heed(before)
        raise ExchangeUnreachable("the connection to RabbitMQ was given up") from fault
    _heed(before)


def _heed(before: int) -> None:
    """Be cancelled after all, when that was asked for since."""
    if cancellations() > before:
        raise asyncio.CancelledError


def cancellations() -> int:
    """How often somebody has asked this task to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


@asynccontextmanager
async def last_word() -> AsyncIterator[None]:
    """Say something to the broker whose loss changes nothing: it finds out by itself."""
    with suppress(ExchangeUnreachable):
        async with answer_within(_LAST_WORD):
            yield


async def _close(channel: Channel) -> None:
    async with last_word():
        await channel.close()


async def _close_connection(connection: AbstractConnection) -> None:
    async with last_word():
        await connection.close(ConnectionError("it was given up"))


def _nothing() -> None:
    pass
