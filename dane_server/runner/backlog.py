"""Bounds what is to be done: who asks for more than there is room for is told to come again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from dane_core.errors import BadSpec, DaneError, Fault, TooMuchOpen, Unreachable
from dane_server.storage.claiming import Claiming
from dane_server.storage.quotas import OpenTasks, Quotas
from dane_server.storage.view import NewJob, Submitted
from dane_server.storage.writer import Writer

logger = logging.getLogger(__name__)

#: Seconds for which a count is believed; one that takes long is made less often.
_FRESH: Final = 1.0
_SHARE: Final = 0.05
#: Nothing is taken in on an older count: the others may have taken in anything since.
_TOO_OLD: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MostOpen:
    """How many tasks of unfinished jobs may be open, before no more are taken in."""

    of_all: int = 2_000_000
    of_owner: int | None = None  # unless the owner has a limit of its own


class Backlog:
    """Takes jobs into the store as long as there is room for them.

    It knows roughly how much is open: what the store had a moment ago, and what came in since.
    What other servers have taken in since the last count is not known here. So all of them
    together may go beyond a limit, by what comes in within a second.
    """

    def __init__(
        self,
        writer: Writer,
        quotas: Quotas,
        most: MostOpen,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._writer = writer
        self._quotas = quotas
        self._most = most
        self._clock = clock
        self._counted = OpenTasks(by_owner={}, most={})
        self._looked_at = float("-inf")
        self._fresh = _FRESH
        self._counting: asyncio.Task[None] | None = None
        self._coming = Counter[str]()  # admitted, but not stored yet
        self._added = Counter[str]()  # stored since the last count

    async def store_jobs(
        self, new_jobs: Sequence[NewJob], claiming: Claiming | None = None
    ) -> list[Submitted | DaneError]:
        """Store the jobs there is room for; in place of another stands TooMuchOpen.

        Or BadSpec, where a job by itself is more than may ever be open. One that was taken in
        before, by its Idempotency-Key, needs no room.
        """
        if self._clock() - self._looked_at >= self._fresh:
            await self._look()
        coming = Counter[str]()
        refused: dict[int, DaneError] = {}
        try:
            for place, new in enumerate(new_jobs):
                if (refusal := await self._refused(new)) is not None:
                    refused[place] = refusal
                    continue
                coming[new.owner] += new.graph.total
                self._coming[new.owner] += new.graph.total
            admitted = [new for place, new in enumerate(new_jobs) if place not in refused]
            outcomes = await self._writer.store_jobs(admitted, claiming) if admitted else []
            for new, outcome in zip(admitted, outcomes, strict=True):
                if isinstance(outcome, Submitted) and not outcome.replayed:
                    self._added[new.owner] += new.graph.total
        finally:
            self._coming -= coming
        stored = iter(outcomes)
        return [refused.get(place) or next(stored) for place in range(len(new_jobs))]

    async def _refused(self, new: NewJob) -> DaneError | None:
        refusal = self._refusal(new)
        if refusal is not None and self._counting is not None:
            await asyncio.shield(self._counting)  # some of it may be done by now
            refusal = self._refusal(new)
        if refusal and new.once and await self._quotas.is_known(new.once.key):
            return None
        return refusal

    def _refusal(self, new: NewJob) -> DaneError | None:
        tasks = new.graph.total
        of_owner = self._counted.most.get(new.owner, self._most.of_owner)
        for count, most, owner in (
            (self._open_of(new.owner), of_owner, new.owner),
            (self._open_in_all(), self._most.of_all, None),
        ):
            if most is not None and tasks > most:  # it will never fit
                told = f"{tasks:,} are more than may be open at once, {most:,}"
                return BadSpec([Fault("tasks", told)])
            if most is not None and count + tasks > most:
                return TooMuchOpen(tasks, count, most, owner)
        return None

    def _open_of(self, owner: str) -> int:
        stored = self._counted.by_owner.get(owner, 0)
        return stored + self._added[owner] + self._coming[owner]

    def _open_in_all(self) -> int:
        stored = sum(self._counted.by_owner.values())
        return stored + self._added.total() + self._coming.total()

    async def _look(self) -> None:
        """See to it that a new count is made; wait for it where the last one is too old."""
        if self._counting is None:
            self._counting = asyncio.create_task(self._count())
        if self._clock() - self._looked_at >= _TOO_OLD + self._fresh:
            await asyncio.shield(self._counting)

    async def _count(self) -> None:
        began, seen = self._clock(), self._added.copy()
        try:
            self._counted = await self._quotas.open_tasks()
        except Unreachable as fault:
            if self._looked_at == float("-inf"):  # nothing is known: whoever waits is told why
                raise
            logger.warning("open tasks could not be counted: %s", fault)
        else:
            self._added -= seen
            self._looked_at = self._clock()
            self._fresh = max(_FRESH, (self._looked_at - began) / _SHARE)
        finally:
            self._counting = None
