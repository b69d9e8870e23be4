"""Lets go what waited for a queue, some at a time, while everything else goes on."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field

from dane_server.runner.bell import LocalBell
from dane_server.storage.view import Place
from dane_server.storage.writer import Writer
from dane_server.supervise import Stopping


@dataclass(slots=True)
class _Walk:
    """How far the tasks of a key were let go."""

    place: Place = field(default_factory=Place)


class Router:
    """Makes ready what found no queue, once there is one: hundreds of thousands may wait.

    What is left when its process ends is tried again by the sweeper, more slowly.
    """

    def __init__(
        self, *, writer: Writer, bell: LocalBell, stopping: Stopping | None = None
    ) -> None:
        self._writer = writer
        self._bell = bell
        self._stopping = stopping or Stopping()
        self._walks: dict[str, _Walk] = {}
        self._bound = asyncio.Event()

    def note_bound(self, keys: Collection[str]) -> None:
        """Queues were bound for these keys: let all their tasks go, from the first."""
        self._walks |= {key: _Walk() for key in sorted(keys)}
        self._bound.set()

    async def run(self) -> None:
        """Walk whenever there are keys to walk, until told to stop."""
        while True:
            async with self._stopping.idle():
                await self._bound.wait()
            while self._walks and not self._stopping.told:
                await self._step()
            self._bound.clear()

    async def _step(self) -> None:
        """Let some tasks of one key go; the next step is for the next key."""
        key, walk = next(iter(self._walks.items()))
        moved, place = await self._writer.route_some(key, walk.place)
        if self._walks.get(key) is walk:  # not bound again meanwhile
            del self._walks[key]
            if place is not None:
                self._walks[key] = _Walk(place)
        if moved:
            await self._bell.ring()
