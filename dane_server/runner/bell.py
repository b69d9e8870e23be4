"""Tells the dispatcher that there may be something to send: in this process, or elsewhere."""

import asyncio
from typing import Protocol

from dane_core.exchange.base import Exchange
from dane_core.message import Nudge


class Bell(Protocol):
    """Rung after something was committed. A ring that gets lost costs one sweep, not a task."""

    async def ring(self) -> None: ...


class LocalBell:
    """The dispatcher runs in this process."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()
        self._is_for_store = False
        self._put_off = asyncio.Event()

    async def ring(self) -> None:
        self._is_for_store = True
        self._rung.set()

    def call(self) -> None:
        """Wake the dispatcher for what it has been handed; in the store there is nothing new."""
        self._rung.set()

    async def heard(self) -> bool:
        """Wait for a ring; several rings while nobody waited count as one.

        Returns whether there may be something in the store.
        """
        await self._rung.wait()
        self._rung.clear()
        is_for_store, self._is_for_store = self._is_for_store, False
        return is_for_store

    def expect(self) -> None:
        """Something was put off: the sweeper is to reckon anew when it has to look."""
        self._put_off.set()

    async def expected(self) -> None:
        """Wait for something to be put off; several at once count as one."""
        await self._put_off.wait()
        self._put_off.clear()


class RemoteBell:
    """The runners are other processes: one of them hears it on the response queue."""

    def __init__(self, exchange: Exchange, response_queue: str) -> None:
        self._exchange = exchange
        self._response_queue = response_queue
        self._rung = False
        self._ringing: asyncio.Task[None] | None = None

    async def ring(self) -> None:
        """Ring without waiting for it: whoever does is not to wait for a broker in trouble."""
        self._rung = True
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.create_task(self._ring())

    async def _ring(self) -> None:
        while self._rung:
            self._rung = False
            if self._exchange.connected and not self._exchange.blocked:
                await self._exchange.send(self._response_queue, [Nudge().seal()])
