"""Keeps the counters of jobs in step with the states of their tasks, within a transaction."""

from collections import Counter, defaultdict
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import ACTIVE, TaskState
from dane_server.storage.statements import recording as sql
from dane_server.storage.trip import defer

_COLUMNS: Final = {
    TaskState.HELD: "held",
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "cancelled",
    TaskState.SKIPPED: "skipped",
} | dict.fromkeys(ACTIVE, "active")


def column(state: TaskState, *, allow_failure: bool = False) -> str | None:
    """The counter a task in this state is counted in; blocked ones are in none."""
    if state is TaskState.FAILED and allow_failure:
        return "forgiven"
    return _COLUMNS.get(state)


class Tally:
    """Collects moves of tasks, and adds them up per job."""

    def __init__(self) -> None:
        self._shifts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.walks = 0  # that have begun, less those that have ended

    def move(
        self, job_id: int, old: TaskState, new: TaskState, *, allow_failure: bool = False
    ) -> None:
        """One task of a job goes from one state to another."""
        before, after = (column(state, allow_failure=allow_failure) for state in (old, new))
        if before == after:
            return
        if before:
            self._shifts[job_id][before] -= 1
        if after:
            self._shifts[job_id][after] += 1

    def let_go(self, job_id: int, walks: int) -> None:
        """So many walks through successors begin, or end: a job is active meanwhile.

        Whatever they will let go is blocked still, and the job would seem to have come to a stop.
        """
        self._shifts[job_id]["active"] += walks
        self.walks += walks

    async def write(self, connection: AsyncConnection) -> None:
        """Update the jobs, those with the same change in one statement, in order of ids."""
        alike: defaultdict[frozenset[tuple[str, int]], list[int]] = defaultdict(list)
        for job_id, shift in sorted(self._shifts.items()):
            change = frozenset((name, by) for name, by in shift.items() if by)
            if change:
                alike[change].append(job_id)
        for change, job_ids in sorted(alike.items(), key=lambda item: item[1]):
            by = dict(change)
            changes = {"ids": job_ids, **sql.new(by)}
            await defer(connection, sql.shift_counts(frozenset(by)), changes)
