"""Lets those who ask at the same time share one question."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

#: A question that takes longer, in seconds, holds up nobody else: it may never be answered.
_PATIENCE: Final = 1.0

K = TypeVar("K")
V = TypeVar("V")


class Together(Generic[K, V]):
    """Asks for all who wait at once, as soon as what was asked before is answered, or hangs.

    Nobody is told what was found out before they asked. What `ask` raises, all get who waited.
    """

    def __init__(self, ask: Callable[[Iterable[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._ask = ask
        self._wanted: set[K] = set()
        self._next: asyncio.Task[Mapping[K, V]] | None = None
        self._under_way: asyncio.Task[Mapping[K, V]] | None = None

    async def of(self, keys: Iterable[K]) -> Mapping[K, V]:
        """What there is for some keys, perhaps among others."""
        self._wanted.update(keys)
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._under_way))
            self._next.add_done_callback(_note_fault)  # all who waited may have given up
        return await asyncio.shield(self._next)

    async def _round(self, before: asyncio.Task[Mapping[K, V]] | None) -> Mapping[K, V]:
        if before is not None:
            await asyncio.wait({before}, timeout=_PATIENCE)
        wanted, self._wanted = self._wanted, set()
        self._under_way, self._next = self._next, None
        return await self._ask(wanted)


def _note_fault(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
