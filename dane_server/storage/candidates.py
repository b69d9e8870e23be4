"""Finds tasks of a key that might go next, without looking at all that are ready.

The index has them by rank, owner and job. A job or an owner that could fill all places by itself
is passed over as soon as that is known: a hundred thousand ready tasks cost what a thousand do.
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.fairness import Group, Past
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.view import Place

#: Entries of the index that one step of a search goes over.
_REACH: Final = 2000
#: Steps of one search; and of one that has found nothing yet.
_STEPS: Final = 6
_STEPS_IN_VAIN: Final = 100
#: Greater than any id.
_END: Final = 2**63 - 1

_Line = tuple[int, int, int]  # rank, owner, job


class Candidates:
    """What was found of one key: tasks that may be sent, by rank, owner and job."""

    def __init__(self, passing: Container[int]) -> None:
        self._passing = passing
        self._found: dict[_Line, dict[int, float]] = {}

    def add(self, rows: Sequence[sa.Row[Any]]) -> None:
        for row in rows:
            if row.stopped or row.due_at is None or row.id in self._passing:
                continue
            if row.due_at <= row.now:
                line = (row.rank, row.owner_id, row.job_id)
                waited = (row.now - row.due_at).total_seconds()
                self._found.setdefault(line, {})[row.id] = waited

    def of_job(self, line: _Line) -> int:
        return len(self._found.get(line, ()))

    def __bool__(self) -> bool:
        return bool(self._found)

    def groups(self) -> list[Group]:
        """As the decision needs them; `take` knows them in the same order."""
        return [
            Group(rank=rank, owner=owner, job=job, ready=len(found), waited=found[min(found)])
            for (rank, owner, job), found in self._found.items()
        ]

    def take(self, shares: Sequence[int]) -> list[int]:
        """The ids of the first so many of each group, the groups taking turns in each rank."""
        turns = [
            (line[0], turn, task_id)
            for (line, found), share in zip(self._found.items(), shares, strict=True)
            for turn, task_id in enumerate(sorted(found)[:share])
        ]
        return [task_id for _, _, task_id in sorted(turns)]


class Search:
    """Looks for candidates; remembers of each key where it has not looked, and whom it served."""

    def __init__(self) -> None:
        self._unseen: dict[str, Place] = {}
        self.past: defaultdict[str, Past] = defaultdict(Past)

    async def find(
        self, connection: AsyncConnection, key: str, places: int, passing: Container[int] = ()
    ) -> Candidates:
        """Tasks of a key that might have the next `places`, of as many owners and jobs as can be.

        Few groups are found all, each as far as there are places. Of too many, those in front
        are found, and others in turn from one search to the next. Tasks in `passing` are not.
        """
        found = Candidates(passing)
        rows = (await connection.execute(sql.in_front(key, places))).all()
        found.add(rows)
        if len(rows) < places:
            self._unseen.pop(key, None)
            return found
        place: Place | None = _behind_first(rows[-1], found, places)
        unseen = self._unseen.pop(key, None)
        for step in range(_STEPS_IN_VAIN):
            if place is None or (found and step >= _STEPS):
                break
            place = await self._step(connection, key, place, (found, places))
        if place is not None:
            self._unseen[key] = place
        if unseen is not None:
            place = await self._step(connection, key, unseen, (found, places))
            if place is not None:
                self._unseen[key] = place
        return found

    async def _step(
        self,
        connection: AsyncConnection,
        key: str,
        place: Place,
        wanted: tuple[Candidates, int],
    ) -> Place | None:
        """Look at what comes behind a place; returns where to go on, None at the end."""
        found, places = wanted
        rows = (await connection.execute(sql.spread_behind(key, place, _REACH, places))).all()
        found.add(rows)
        if not rows or rows[0].reached < _REACH:
            return None
        end = Place(*(await connection.execute(sql.place_behind(key, place, _REACH))).one())
        lines = {(row.rank, row.owner_id, row.job_id) for row in rows}
        if lines == {end[:3]}:
            return end._replace(task_id=_END)
        if {line[:2] for line in lines} == {end[:2]}:
            self._unseen.setdefault(key, end)
            return end._replace(job_id=_END, task_id=_END)
        return end


def _behind_first(last: sa.Row[Any], found: Candidates, places: int) -> Place:
    """Where to go on behind what lies in front: not in a job that has enough, or stands still."""
    line = (last.rank, last.owner_id, last.job_id)
    passed_over = last.stopped or found.of_job(line) >= places
    return Place(*line, _END if passed_over else last.id)
