"""Stores that end or stop in the middle, as processes and networks do."""

import asyncio
from typing import Any, TypeVar

from dane_server.storage.engine import Store, Unit

T = TypeVar("T")


class Crash(Exception):
    """The process ended here."""


class Crashing(Store):
    """A store whose user dies just before a commit: in the first transaction, or `after` some."""

    def __init__(self, store: Store, after: int = 0) -> None:
        self._store = store
        self._after = after

    async def write(self, unit: Unit[T], *, patience: float | None = None) -> T:
        if self._after:
            self._after -= 1
            return await self._store.write(unit, patience=patience)

        async def cut_short(connection: Any) -> T:
            await unit(connection)
            raise Crash

        return await self._store.write(cut_short, patience=patience)

    async def read(self, unit: Unit[T]) -> T:
        return await self._store.read(unit)


class Holding(Store):
    """A store whose first transaction stays open, all done, until it may `go_on`.

    It then commits; or raises `then`, and is rolled back.
    """

    def __init__(self, store: Store, then: Exception | None = None) -> None:
        self._store = store
        self._then = then
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def write(self, unit: Unit[T], *, patience: float | None = None) -> T:
        async def held(connection: Any) -> T:
            result = await unit(connection)
            self.reached.set()
            await self.go_on.wait()
            if self._then is not None:
                raise self._then
            return result

        return await self._store.write(held, patience=patience)

    async def read(self, unit: Unit[T]) -> T:
        return await self._store.read(unit)
