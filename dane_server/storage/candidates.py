"""Finds tasks of a key that might go next, without looking at all that are ready.

The index has them by rank, owner and job. A job or an owner that could fill all places by itself
is passed over as soon as that is known: a hundred thousand ready tasks cost what a thousand do.
"""

import math
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

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
#: Seconds before reserved places alone are offered again, where nobody had a use for them.
_VAIN_PAUSE: Final = 1.0

_Line = tuple[int, int, int]  # rank, owner, job


class Candidates:
    """What was found of one key: tasks that may be sent, by rank, owner and job.

    `are_all` says whether nothing of the key was left unseen.
    """

    def __init__(self, passing: Container[int]) -> None:
        self.are_all = False
        self._passing = passing
        self._now: Any = None  # the database's
        self._found: defaultdict[_Line, dict[int, datetime]] = defaultdict(dict)

    def add(self, rows: Iterable[Any]) -> None:
        for rank, owner, job, task_id, due_at, now, stopped in rows:
            if stopped or due_at is None or task_id in self._passing:
                continue
            if due_at <= now:
                self._now = now
                self._found[rank, owner, job][task_id] = due_at

    def of_job(self, line: _Line) -> int:
        return len(self._found.get(line, ()))

    def of_owner(self, owner: tuple[int, int]) -> int:
        return sum(len(found) for line, found in self._found.items() if line[:2] == owner)

    def __bool__(self) -> bool:
        return bool(self._found)

    def groups(self) -> list[Group]:
        """As the decision needs them; `take` knows them in the same order."""
        return [
            Group(rank=rank, owner=owner, job=job, ready=len(found), waited=self._waited(found))
            for (rank, owner, job), found in self._found.items()
        ]

    def firsts(self) -> list[int]:
        """The id of the task of each group that goes before its others."""
        return [min(found) for found in self._found.values()]

    def take(self, shares: Sequence[int]) -> list[int]:
        """The ids of the first so many of each group, the groups taking turns in each rank."""
        turns = [
            (line[0], turn, task_id)
            for (line, found), share in zip(self._found.items(), shares, strict=True)
            for turn, task_id in enumerate(sorted(found)[:share])
        ]
        return [task_id for _, _, task_id in sorted(turns)]

    def _waited(self, found: Mapping[int, datetime]) -> float:
        return float((self._now - found[min(found)]).total_seconds())


class Search:
    """Looks for candidates; remembers of each key where it has not looked, and whom it served."""

    def __init__(self) -> None:
        self._unseen: dict[str, Place] = {}
        self._in_vain = -math.inf
        self.past: defaultdict[str, Past] = defaultdict(Past)

    def until_worth_it(self) -> float:
        """Seconds until jobs with nothing in flight are to be sought for reserved places alone.

        Tasks may run for hours on each of a hundred keys: to look on all of them whenever one
        ends is not worth it, where none was found a moment ago.
        """
        return max(self._in_vain + _VAIN_PAUSE - time.monotonic(), 0.0)

    def note_vain(self) -> None:
        """No such job was found."""
        self._in_vain = time.monotonic()

    async def find(
        self, connection: AsyncConnection, key: str, places: int, passing: Container[int] = ()
    ) -> Candidates:
        """Tasks of a key that might have the next `places`, of as many owners and jobs as can be.

        Few groups are found all, each as far as there are places. Of too many, those in front
        are found, and others in turn from one search to the next. Tasks in `passing` are not.
        """
        found = Candidates(passing)
        rows = (await connection.execute(sql.in_front(), {"key": key, "most": places})).all()
        found.add(rows)
        unseen = self._unseen.pop(key, None)
        if len(rows) < places:
            found.are_all = True
            return found
        look = _Look(connection, key, places, found)
        place: Place | None = look.behind_job(Place(*rows[-1][:4]), rows)
        for steps in range(_STEPS_IN_VAIN):
            if place is None or (found and steps >= _STEPS):
                break
            seen = await look.behind(place)
            if seen.unseen is not None:
                self._unseen.setdefault(key, seen.unseen)
            # All that was seen stands still: what was left out is next, and not another time;
            # unless it is so much that all of it would leave no step for what comes behind.
            is_near = not found and steps < _STEPS_IN_VAIN // 2
            place = (seen.unseen or seen.end) if is_near else seen.end
        if place is not None:
            self._unseen[key] = place
        if unseen is not None:
            seen = await look.behind(unseen)
            if further := seen.unseen or seen.end:
                self._unseen[key] = further
        return found


class _Seen(NamedTuple):
    """Where to go on after a look, None at the end; and behind what jobs were left out."""

    end: Place | None
    unseen: Place | None


class _Look:
    """Looks at what comes behind a place, and says where to go from there."""

    def __init__(
        self, connection: AsyncConnection, key: str, places: int, found: Candidates
    ) -> None:
        self._connection = connection
        self._key = key
        self._places = places
        self._found = found

    async def behind(self, place: Place) -> _Seen:
        spread = sql.spread_behind(self._key, place, _REACH, self._places)
        rows = (await self._connection.execute(spread)).all()
        self._found.add(rows)
        far = sql.place_behind(self._key, place, _REACH)
        end = (await self._connection.execute(far)).one_or_none()
        unseen = self._left_out(rows)
        if end is None:
            return _Seen(None, unseen)
        return _Seen(self._behind_owner(self.behind_job(Place(*end), rows), rows), unseen)

    def behind_job(self, place: Place, rows: Sequence[sa.Row[Any]]) -> Place:
        """Not on in a job that has enough, or stands still."""
        stopped = any(row.stopped for row in rows if row.job_id == place.job_id)
        enough = self._found.of_job(place[:3]) >= self._places
        return place._replace(task_id=sql.END) if stopped or enough else place

    def _behind_owner(self, place: Place, rows: Sequence[sa.Row[Any]]) -> Place:
        """Not on among the jobs of an owner that has enough, if only its jobs were seen."""
        seen = {(row.rank, row.owner_id) for row in rows}
        enough = self._found.of_owner(place[:2]) >= self._places
        only_its = seen == {place[:2]} and len({row.job_id for row in rows}) > 1
        return place._replace(job_id=sql.END, task_id=sql.END) if enough and only_its else place

    def _left_out(self, rows: Sequence[sa.Row[Any]]) -> Place | None:
        """Behind the last job seen of the first owner of which not all were."""
        owners: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for row in rows:
            owners[row.rank, row.owner_id].append(row.job_id)
        many = [owner for owner, jobs in owners.items() if len(jobs) >= self._places]
        if not many:
            return None
        first = min(many)
        return Place(*first, max(owners[first]), sql.END)
