"""What operators and owners do to jobs and tasks: each act is one transaction, or a walk of many.

An act on a whole job moves some hundred tasks at a time, so that no lock is held for long;
a flag on the job makes sure that the walk is finished by the sweeper if it was cut short.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import IllegalMove, NotFound
from dane_core.job import JobId, TaskId
from dane_core.routing import MAX_PRIORITY
from dane_core.states import SENT, SETTLED, JobStatus, TaskState
from dane_server.storage.engine import Store
from dane_server.storage.release import go_on, reopen_after, reopen_before
from dane_server.storage.statements import act as sql
from dane_server.storage.statements import presence, recording
from dane_server.storage.statements.release import releases_under_way, still_waiting
from dane_server.storage.tally import Tally

_SOME: Final = 500
#: Walks through successors that go on beside each other, a step of each in turn.
_WALKS: Final = 100
_RETRIABLE: Final = (
    TaskState.BACKOFF,
    TaskState.UNROUTABLE,
    TaskState.HELD,
    TaskState.SKIPPED,
    TaskState.CANCELLED,
    TaskState.FAILED,
)
_UNSETTLED: Final = tuple(state for state in TaskState if state not in SETTLED)
_SENT: Final = (TaskState.DISPATCHING, TaskState.QUEUED)
_OVER: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
#: An attempt is on its way, or may be; taking the task away from it ends it.
_AT_WORK: Final = SENT | {TaskState.RUNNING}

_Act = Callable[[AsyncConnection, Sequence[sa.Row[Any]], Tally], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Walked:
    """How many tasks a walk met, and how many were still as it had found them."""

    met: int = 0
    moved: int = 0

    def __add__(self, other: Self) -> "_Walked":
        return _Walked(met=self.met + other.met, moved=self.moved + other.moved)


class Acts:
    """Retry, reset, cancel, pause and delete, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- one task -----------------------------------------------------------------------

    async def retry_task(self, task_id: TaskId) -> None:
        """Run a task again, unless it is done or on its way. Raises: NotFound."""

        async def act(connection: AsyncConnection, task: sa.Row[Any], tally: Tally) -> None:
            if TaskState(task.state) in _RETRIABLE:
                await _again(connection, [task], tally)

        await self._on_task(task_id, act)

    async def force_task(self, task_id: TaskId) -> int:
        """Run a task again whatever its state; returns its old attempt, now fenced off."""

        async def act(connection: AsyncConnection, task: sa.Row[Any], tally: Tally) -> None:
            await _start_over(connection, [task], TaskState.READY, tally)

        return await self._on_task(task_id, act)

    async def reset_task(self, task_id: TaskId) -> int:
        """Hold a task until its predecessors finish again, or its job is retried.

        Returns its old attempt, now fenced off.
        """

        async def act(connection: AsyncConnection, task: sa.Row[Any], tally: Tally) -> None:
            if task.pending > 0:
                await _start_over(connection, [task], TaskState.BLOCKED, tally, message="Reset")
            else:
                await _start_over(connection, [task], TaskState.HELD, tally)
                await reopen_before(connection, [task.id])

        return await self._on_task(task_id, act)

    async def _on_task(self, task_id: TaskId, act: Callable[..., Any]) -> int:
        async def unit(connection: AsyncConnection) -> int:
            task = (await connection.execute(sql.one_task(task_id))).one_or_none()
            if task is None or not await _living(connection, task.job_id):
                raise NotFound("task", task_id)
            tally = Tally()
            await act(connection, task, tally)
            await tally.write(connection)
            return int(task.attempt)

        return await self._store.write(unit)

    # --- one job ------------------------------------------------------------------------

    async def retry_job(self, job_id: JobId) -> None:
        """Run again what failed, was cancelled or held; keep what succeeded. Raises: NotFound."""
        await self._flag(job_id, cancelling=False)
        await self._walk_job(job_id, _RETRIABLE, _again)

    async def cancel_job(self, job_id: JobId) -> None:
        """Cancel everything that is not settled.

        Raises: NotFound; IllegalMove, when there is nothing left to cancel.
        """

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            if JobStatus(job.status) in _OVER:
                raise IllegalMove(f"job {job_id}", job.status, "cancel it")
            await connection.execute(sql.flag_job(job_id, cancelling=True, paused=False))

        await self._store.write(unit)
        await self.finish_cancelling(job_id)

    async def finish_cancelling(self, job_id: JobId) -> None:
        """Cancel the tasks of a job that is flagged, some at a time."""
        while (await self._walk_job(job_id, _UNSETTLED, _cancel)).met:
            pass  # once more: one may have moved to a state that was passed already
        await self._flag(job_id, cancelling=False)

    async def pause_job(self, job_id: JobId) -> None:
        """Send no more of a job's tasks, and take back those that lie in queues.

        Raises: NotFound; IllegalMove, when there is nothing left to pause.
        """

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            if JobStatus(job.status) in _OVER:
                raise IllegalMove(f"job {job_id}", job.status, "pause it")
            await connection.execute(sql.flag_job(job_id, paused=True))

        await self._store.write(unit)
        await self.finish_pausing(job_id)

    async def finish_pausing(self, job_id: JobId) -> None:
        """Take back what lies in queues for a paused job."""
        await self._walk_job(job_id, _SENT, _recall)

    async def resume_job(self, job_id: JobId) -> None:
        """Let a paused job go on; one that is not paused just goes on. Raises: NotFound."""
        await self._flag(job_id, paused=False)

    async def delete_job(self, job_id: JobId) -> None:
        """Delete a job. It is gone at once; its tasks follow, some at a time. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            await connection.execute(sql.bury(job_id))
            await connection.execute(sql.drop_request_keys_of(job_id))
            await connection.execute(sql.drop_job(job_id))
            await connection.execute(sql.hold_source(job.source_id))
            await connection.execute(sql.forget_source(job.source_id))

        await self._store.write(unit)
        await self.finish_deleting(job_id)

    async def finish_deleting(self, job_id: JobId) -> None:
        """Remove what hung on a deleted job."""

        async def unit(connection: AsyncConnection) -> int:
            ids = sorted(await connection.scalars(sql.some_tasks_of(job_id, _SOME)))
            if ids:
                for statement in sql.drop_tasks(ids):
                    await connection.execute(statement)
            else:
                await connection.execute(sql.bury_for_good(job_id))
            return len(ids)

        while await self._store.write(unit):
            pass

    async def finish_walks(self) -> None:
        """Go on with what was cut short: cancellations, pauses, deletions."""
        for job_id in await self._found(sql.jobs_cancelling()):
            with suppress(NotFound):  # deleted meanwhile
                await self.finish_cancelling(JobId(job_id))
        for job_id in await self._found(sql.jobs_with_stray_tasks()):
            await self.finish_pausing(JobId(job_id))
        for key in await self._found(sql.keys_with_stray_tasks()):
            await self.recall_key(key)
        for job_id in await self._found(sql.buried()):
            await self.finish_deleting(JobId(job_id))
        while await self.release_some():
            pass

    async def nodes_releasing(self) -> Sequence[int]:
        """Nodes that are letting their successors go, some at a time."""
        return await self._found(releases_under_way(_WALKS))

    async def release_after(self, node: int) -> bool:
        """Let the next successors of a node go; false: there were none."""
        return await self._store.write(lambda connection: go_on(connection, node))

    async def release_some(self) -> bool:
        """Let the next successors of each such node go; false: there was none."""
        nodes = await self.nodes_releasing()
        for node in nodes:
            await self.release_after(node)
        return bool(nodes)

    async def _found(self, statement: sa.Select[Any]) -> list[Any]:
        async def unit(connection: AsyncConnection) -> list[Any]:
            return list(await connection.scalars(statement))

        return await self._store.read(unit)

    # --- one key ------------------------------------------------------------------------

    async def pause_key(self, key: str) -> None:
        """Send no more tasks of a key, and take back those that lie in its queue."""
        await self._set_key(key, paused=True)
        await self.recall_key(key)

    async def recall_key(self, key: str) -> None:
        """Take back what lies in a key's queue; it is ready again, with the attempt it had."""
        await self._walk_key(key, _SENT, _recall)

    async def resume_key(self, key: str) -> None:
        await self._set_key(key, paused=False)

    async def retry_key(self, key: str, number: int) -> int:
        """Run again the tasks of a key that failed with a number; returns how many."""
        states = (TaskState.CANCELLED, TaskState.FAILED)
        return (await self._walk_key(key, states, _again, outcome=number)).moved

    async def _set_key(self, key: str, *, paused: bool) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(presence.add_task_keys().values(task_key=key))
            await connection.execute(presence.change_task_key(key).values(paused=paused))

        await self._store.write(unit)

    # --- walking ------------------------------------------------------------------------

    async def _walk_job(self, job_id: JobId, states: Iterable[TaskState], act: _Act) -> _Walked:
        """Do an act to the tasks of a job that are in some states."""
        walked = _Walked()
        for state in states:
            some = partial(sql.tasks_of_job, job_id, state)
            walked += await self._walk(some, partial(sql.those_still, state=state), act)
        return walked

    async def _walk_key(
        self, key: str, states: Iterable[TaskState], act: _Act, *, outcome: int | None = None
    ) -> _Walked:
        walked = _Walked()
        for state, rank in product(states, range(MAX_PRIORITY + 1)):
            some = partial(sql.tasks_of_key, key, state, rank)
            still = partial(sql.those_still, state=state, outcome=outcome)
            walked += await self._walk(some, still, act)
        return walked

    async def _walk(
        self,
        some_after: Callable[[int, int], sa.Select[Any]],
        those_still: Callable[[Sequence[int]], sa.Select[Any]],
        act: _Act,
    ) -> _Walked:
        """Do an act to tasks, some at a time from the first to the last.

        Never back to the first: what is retried can fail again faster than the walk takes.
        """
        walked, place = _Walked(), -1

        async def unit(connection: AsyncConnection) -> tuple[int, _Walked]:
            found = (await connection.execute(some_after(place, _SOME))).all()
            if not found:
                return place, _Walked()
            rows = (await connection.execute(those_still([row.id for row in found]))).all()
            if rows:
                tally = Tally()
                await act(connection, rows, tally)
                await tally.write(connection)
            return found[-1].place, _Walked(met=len(found), moved=len(rows))

        while True:
            place, step = await self._store.write(unit)
            if not step.met:
                return walked
            walked += step

    async def _flag(self, job_id: JobId, **flags: bool) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await _job(connection, job_id)
            await connection.execute(sql.flag_job(job_id, **flags))

        await self._store.write(unit)


async def _job(connection: AsyncConnection, job_id: JobId) -> sa.Row[Any]:
    job: sa.Row[Any] | None = (await connection.execute(sql.job_for_act(job_id))).one_or_none()
    if job is None:
        raise NotFound("job", job_id)
    return job


async def _living(connection: AsyncConnection, job_id: int) -> bool:
    return (await connection.scalars(recording.living_jobs([job_id]))).one_or_none() is not None


async def _again(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> None:
    """Run tasks again: at once, or when their predecessors are done."""
    await reopen_before(connection, [row.id for row in rows if row.pending == 0])
    waiting = set(await connection.scalars(still_waiting([row.id for row in rows])))
    await _start_over(connection, [r for r in rows if r.id not in waiting], TaskState.READY, tally)
    await _start_over(connection, [r for r in rows if r.id in waiting], TaskState.BLOCKED, tally)


async def _start_over(
    connection: AsyncConnection,
    rows: Sequence[sa.Row[Any]],
    state: TaskState,
    tally: Tally,
    *,
    message: str | None = None,
) -> None:
    if not rows:
        return
    await _close_attempts(connection, rows)
    await connection.execute(sql.again([row.id for row in rows], state, message))
    await reopen_after(connection, [row.id for row in rows if row.released], tally)
    for row in rows:
        tally.move(row.job_id, TaskState(row.state), state, allow_failure=bool(row.allow_failure))


async def _close_attempts(connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> bool:
    """What was under way ends here, whatever its worker may still answer; whether any was."""
    under_way = [row for row in rows if TaskState(row.state) in _AT_WORK]
    if under_way:
        await connection.execute(recording.add_attempts(), [_closed(row) for row in under_way])
    return bool(under_way)


def _closed(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        "task_id": row.id,
        "number": row.attempt,
        "worker": row.worker,
        "outcome": 499,
        "message": sql.CUT,
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "finished_at": row.now,
        "runtime": None,
    }


async def _cancel(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> None:
    if await _close_attempts(connection, rows):
        await connection.execute(sql.note_cut(sorted({row.job_id for row in rows}), rows[0].now))
    await connection.execute(sql.cancel([row.id for row in rows]))
    for row in rows:
        tally.move(row.job_id, TaskState(row.state), TaskState.CANCELLED)


async def _recall(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> None:
    await connection.execute(sql.recall([row.id for row in rows]))
    for row in rows:
        tally.move(row.job_id, TaskState(row.state), TaskState.READY)
