"""A connection to RabbitMQ that comes back by itself, and how its silence is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import uniform
from typing import Final, cast

from aio_pika import RobustConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq import Channel
from yarl import URL

from dane_core.errors import ExchangeUnreachable

_HEARTBEAT: Final = 10  # seconds; a silent connection is given up after (10 + 1) * 3
#: Seconds between two tries to connect, doubling from the first to the last.
_FIRST_PAUSE: Final = 1.0
_LAST_PAUSE: Final = 15.0
#: Seconds for a last word to the broker, when no answer changes anything any more.
_LAST_WORD: Final = 5.0


class Line:
    """A connection to the broker that comes back by itself.

    `patience` is how many seconds one answer of the broker is waited for. `on_back` is called
    each time the connection is there again.
    """

    def __init__(self, connection: RobustConnection, patience: float) -> None:
        self.patience = patience
        self.on_back: Callable[[], None] = _nothing
        self._connection = connection
        self._pause = _FIRST_PAUSE
        connection.close_callbacks.add(self._wait_longer)
        connection.reconnect_callbacks.add(self._come_back)

    @property
    def up(self) -> bool:
        return self._connection.connected.is_set()

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel. Raises: ExchangeUnreachable."""
        transport = self._connection.transport
        if transport is None or not self.up:
            raise ExchangeUnreachable("not connected to RabbitMQ")
        async with answer_within(self.patience):
            channel = await transport.connection.channel(
                publisher_confirms=confirms, on_return_raises=True
            )
            return cast("Channel", channel)

    @asynccontextmanager
    async def errand(self) -> AsyncIterator[Channel]:
        """A channel for a question or two: when the broker objects, no other one is closed."""
        channel = await self.channel()
        try:
            async with answer_within(self.patience):
                yield channel
        finally:
            await close_channel(channel)

    def _wait_longer(self, *_: object) -> None:
        # aio-pika calls this for a lost connection and again for every failed try.
        jitter = uniform(0.75, 1.25)  # noqa: S311 - keeps many workers apart, is no secret
        self._connection.reconnect_interval = self._pause * jitter
        self._pause = min(self._pause * 2, _LAST_PAUSE)

    def _come_back(self, *_: object) -> None:
        self._pause = self._connection.reconnect_interval = _FIRST_PAUSE
        self.on_back()


@asynccontextmanager
async def open_line(url: str, name: str, patience: float) -> AsyncIterator[Line]:
    """Connect, and stay connected. Raises: ExchangeUnreachable, if the first try fails."""
    address = URL(url)
    settings = {"heartbeat": str(_HEARTBEAT), "name": name} | dict(address.query)
    connection = RobustConnection(address.with_query(settings), reconnect_interval=_FIRST_PAUSE)
    line = Line(connection, patience)
    try:
        try:
            async with answer_within(patience):
                await connection.connect(timeout=patience)
        except ExchangeUnreachable as fault:
            shown = address.with_password("***") if address.password else address
            raise ExchangeUnreachable(f"no RabbitMQ at {shown}: {fault}") from fault
        yield line
    finally:
        with suppress(ExchangeUnreachable):
            async with answer_within(_LAST_WORD):
                await connection.close()


@asynccontextmanager
async def answer_within(patience: float) -> AsyncIterator[None]:
    """Wait so many seconds for the broker, and tell all ways in which it fails to answer as one.

    Raises: ExchangeUnreachable, whose cause is the library's error.
    """
    try:
        async with asyncio.timeout(patience):
            yield
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise ExchangeUnreachable("the connection to RabbitMQ was lost") from None
    except TimeoutError as silence:
        raise ExchangeUnreachable(f"RabbitMQ did not answer in {patience:g} s") from silence
    except CONNECTION_EXCEPTIONS as fault:
        raise ExchangeUnreachable(str(fault) or type(fault).__name__) from fault


@asynccontextmanager
async def last_word() -> AsyncIterator[None]:
    """Say something to the broker whose loss changes nothing: it finds out by itself."""
    with suppress(ExchangeUnreachable):
        async with answer_within(_LAST_WORD):
            yield


async def close_channel(channel: Channel) -> None:
    async with last_word():
        await channel.close()


def is_cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task.

    Otherwise it is aiormq's way to tell those who wait on a connection that it is lost.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _nothing() -> None:
    pass
