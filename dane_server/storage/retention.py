"""Removes what has been kept long enough, some hundred rows at a time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId
from dane_core.states import JobStatus
from dane_server.storage.acts import Acts
from dane_server.storage.chunk import ROWS
from dane_server.storage.engine import Store
from dane_server.storage.statements import act
from dane_server.storage.statements import retention as sql

_SUCCEEDED_OR_CANCELLED = (JobStatus.SUCCEEDED, JobStatus.CANCELLED)
_FAILED = (JobStatus.FAILED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How long things are kept; None: for ever."""

    jobs: timedelta | None = timedelta(days=90)  # that succeeded or were cancelled, from their end
    failed: timedelta | None = timedelta(days=365)
    once: timedelta | None = timedelta(days=7)  # Idempotency-Keys
    rejected: timedelta | None = timedelta(days=30)  # counts of refused answers
    attempts: int | None = 20  # of each task, the newest

    @property
    def of_jobs(self) -> Sequence[tuple[Sequence[JobStatus], float]]:
        """For each way to end, the seconds after which a job may go."""
        ways = ((_SUCCEEDED_OR_CANCELLED, self.jobs), (_FAILED, self.failed))
        return [(ends, age.total_seconds()) for ends, age in ways if age is not None]


class Retention:
    """Finds and removes what is old. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._acts = Acts(store)

    async def old_jobs(self, keep: Keep) -> AsyncIterator[Sequence[JobId]]:
        """Jobs that may go, in batches, the oldest first."""
        for ends, seconds in keep.of_jobs:
            after: tuple[Any, int] | None = None
            while rows := await self._rows(sql.old_jobs(ends, seconds, ROWS, after)):
                yield [JobId(row.id) for row in rows]
                after = (rows[-1].finished_at, rows[-1].id)

    async def remove_job(self, job_id: JobId, keep: Keep) -> bool:
        """Delete a job if it may still go; its tasks follow, some at a time."""

        async def unit(connection: AsyncConnection) -> bool:
            for ends, seconds in keep.of_jobs:
                found = await connection.execute(sql.still_old(job_id, ends, seconds))
                if (job := found.one_or_none()) is not None:
                    await _bury(connection, job)
                    return True
            return False

        buried = await self._store.write(unit)
        if buried:
            await self._acts.finish_deleting(job_id)
        return buried

    async def forget_request_keys(self, age: timedelta) -> int:
        """Forget some Idempotency-Keys; 0 once none is too old. Their jobs stay."""
        seconds = age.total_seconds()
        rows = await self._rows(sql.old_request_keys(seconds, ROWS))
        keys = sorted(row.request_key for row in rows)
        return await self._delete(sql.forget_request_keys(keys, seconds)) if keys else 0

    async def forget_rejections(self, age: timedelta) -> int:
        """Forget some counts of refused answers; 0 once none is too old."""
        seconds = age.total_seconds()
        rows = await self._rows(sql.old_rejections(seconds, ROWS))
        keys = sorted(tuple(row) for row in rows)
        return await self._delete(sql.forget_rejections(keys, seconds)) if keys else 0

    async def count_request_keys(self, age: timedelta) -> int:
        rows = await self._rows(sql.number_of(sql.old_request_keys(age.total_seconds(), None)))
        return int(rows[0][0])

    async def count_rejections(self, age: timedelta) -> int:
        rows = await self._rows(sql.number_of(sql.old_rejections(age.total_seconds(), None)))
        return int(rows[0][0])

    async def forget_attempts(self, most: int, since: timedelta) -> int:
        """Forget all but the newest attempts, of tasks that were tried within `since`."""
        forgotten = 0
        for row in await self._rows(sql.tried_often(most, since.total_seconds())):
            excess = await self._rows(sql.older_attempts(row.task_id, most))
            if excess:
                forgotten += await self._delete(sql.forget_attempts(row.task_id, excess[0].number))
        return forgotten

    async def _rows(self, statement: sa.Select[Any]) -> Sequence[Any]:
        async def unit(connection: AsyncConnection) -> Sequence[Any]:
            rows: Sequence[Any] = (await connection.execute(statement)).all()
            return rows

        return await self._store.read(unit)

    async def _delete(self, statement: sa.Delete) -> int:
        async def unit(connection: AsyncConnection) -> int:
            return (await connection.execute(statement)).rowcount

        return await self._store.write(unit)


async def _bury(connection: AsyncConnection, job: Any) -> None:
    await connection.execute(act.bury(job.id))
    await connection.execute(act.drop_request_keys_of(job.id))
    await connection.execute(act.drop_job(job.id))
    await connection.execute(act.hold_source(job.source_id))
    await connection.execute(act.forget_source(job.source_id))
