"""What operators and owners do to jobs and tasks: each act is one transaction, or a walk of many.

An act on a whole job moves some hundred tasks at a time, so that no lock is held for long. A mark
on the job, made first, says that it is under way: whoever finds it can go on, any number of them
at once. What began first wins: while a job is being cancelled nothing of it is started over.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

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
from dane_server.storage.view import Place

_SOME: Final = 500
#: Walks through successors that go on beside each other, a step of each in turn.
_WALKS: Final = 100
_RETRIABLE: Final = (
    TaskState.BACKOFF,
    TaskState.UNROUTABLE,
    TaskState.HELD,
    TaskState.SKIPPED,
    TaskState.FAILED,
    TaskState.CANCELLED,
)
_UNSETTLED: Final = tuple(state for state in TaskState if state not in SETTLED)
_SENT: Final = (TaskState.DISPATCHING, TaskState.QUEUED)
_OVER: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
#: An attempt is on its way, or may be; taking the task away from it ends it.
_AT_WORK: Final = SENT | {TaskState.RUNNING}

#: Cancelled in this order: what a worker may have or get comes first.
_CANCELLED_IN_TURN: Final = (
    *_SENT,
    TaskState.RUNNING,
    TaskState.UNROUTABLE,
    TaskState.READY,
    TaskState.BACKOFF,
    TaskState.HELD,
    TaskState.BLOCKED,
)

#: Returns how many tasks it was done to.
_Act = Callable[[AsyncConnection, Sequence[sa.Row[Any]], Tally], Awaitable[int]]


class _Overtaken(Exception):
    """Another act came in between; what was done in this transaction is to be rolled back."""


class Acts:
    """Retry, reset, cancel, pause and delete, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- one task -----------------------------------------------------------------------

    async def retry_task(self, task_id: TaskId) -> None:
        """Run a task again, unless it is done or on its way.

        Raises, as the other acts on a task: NotFound; IllegalMove, while its job is being
        cancelled.
        """

        async def act(connection: AsyncConnection, task: sa.Row[Any], tally: Tally) -> None:
            if TaskState(task.state) in _RETRIABLE:
                await _again(connection, [task], tally)

        await self._on_task(task_id, act, "retry a task of it")

    async def force_task(self, task_id: TaskId) -> int:
        """Run a task again whatever its state; returns its old attempt, now fenced off."""

        async def act(connection: AsyncConnection, task: sa.Row[Any], tally: Tally) -> None:
            await _start_over(connection, [task], TaskState.READY, tally)

        return await self._on_task(task_id, act, "retry a task of it")

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

        return await self._on_task(task_id, act, "reset a task of it")

    async def prioritize_task(self, task_id: TaskId, priority: int) -> None:
        """Give a task another priority; what lies in a queue is taken back, and sent by it.

        Raises: NotFound.
        """

        async def unit(connection: AsyncConnection) -> None:
            task = (await connection.execute(sql.one_task(task_id))).one_or_none()
            if task is None or not await _living(connection, task.job_id):
                raise NotFound("task", task_id)
            await _rerank(connection, [task], MAX_PRIORITY - priority)

        await self._store.write(unit)

    async def _on_task(self, task_id: TaskId, act: Callable[..., Any], verb: str) -> int:
        async def unit(connection: AsyncConnection) -> int:
            task = (await connection.execute(sql.one_task(task_id))).one_or_none()
            if task is None or not await _living(connection, task.job_id):
                raise NotFound("task", task_id)
            tally = Tally()
            await act(connection, task, tally)
            # Held until the commit: a cancellation that begins now finds what was done here.
            if await _cancelled_meanwhile(connection, [task.job_id]):
                raise _being_cancelled(task.job_id, verb)
            await tally.write(connection)
            return int(task.attempt)

        return await self._store.write(unit)

    # --- one job ------------------------------------------------------------------------

    async def retry_job(self, job_id: JobId) -> None:
        """Run again what failed, was cancelled or held. Raises as `begin_retrying`."""
        await self.begin_retrying(job_id)
        await self.finish_retrying(job_id)

    async def begin_retrying(self, job_id: JobId) -> None:
        """Mark a job: what failed, was cancelled or held is to run again; what succeeded stays.

        Raises: NotFound; IllegalMove, while it is being cancelled.
        """

        async def unit(connection: AsyncConnection) -> None:
            if (await _job(connection, job_id)).cancelling:
                raise _being_cancelled(job_id, "retry it")
            await connection.execute(sql.end_retrying(job_id))
            await connection.execute(sql.begin_retrying(job_id))

        await self._store.write(unit)

    async def retry_some(self, job_id: JobId) -> bool:
        """Run some tasks of a marked job again; false: all that were to run again do.

        From the first to the last of each state, and never back: what is retried can fail again
        faster than this takes. A cancellation takes the mark away: it was asked for later.
        """

        async def unit(connection: AsyncConnection) -> bool:
            mark = (await connection.execute(sql.retrying(job_id))).one_or_none()
            if mark is None:
                return False
            before = (mark.step, mark.after_seq)
            state, found, after = await _next_to_retry(connection, job_id, before)
            tally = Tally()
            if found:
                rows = (await connection.execute(sql.those_still(found, state))).all()
                await _again(connection, rows, tally)
            # After the tasks, and held until the commit: a cancellation that begins now finds them.
            stopped = await _cancelled_meanwhile(connection, [job_id])
            moved = await connection.execute(sql.move_retrying(job_id, before, after))
            if stopped or not moved.rowcount:
                raise _Overtaken
            if not found:
                await connection.execute(sql.end_retrying(job_id))
            await tally.write(connection)
            return bool(found)

        try:
            return await self._store.write(unit)
        except _Overtaken:
            return True  # as far as somebody else has left anything

    async def finish_retrying(self, job_id: JobId) -> None:
        """Run all tasks of a marked job again that are to."""
        while await self.retry_some(job_id):
            pass

    async def cancel_job(self, job_id: JobId) -> None:
        """Cancel everything that is not settled. Raises as `begin_cancelling`."""
        await self.begin_cancelling(job_id)
        await self.finish_cancelling(job_id)

    async def begin_cancelling(self, job_id: JobId) -> None:
        """Mark a job: nothing of it is sent any more, and who asks about it is told so.

        What is left is to cancel its tasks, some at a time, and to take the mark away.
        Raises: NotFound; IllegalMove, when there is nothing left to cancel.
        """

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            if JobStatus(job.status) in _OVER and not job.cancelling:
                raise IllegalMove(f"job {job_id}", job.status, "cancel it")
            await connection.execute(sql.flag_job(job_id, cancelling=True, paused=False))
            await connection.execute(sql.end_retrying(job_id))

        await self._store.write(unit)

    async def cancel_some(self, job_id: JobId) -> bool:
        """Cancel some tasks of a marked job, first those a worker may have; false: none is left."""
        return await self._some_of_job(job_id, _CANCELLED_IN_TURN, _cancel, _is_cancelling)

    async def end_cancelling(self, job_id: JobId) -> bool:
        """Take the mark away, unless something is left to cancel after all."""

        async def unit(connection: AsyncConnection) -> bool:
            job = (await connection.execute(sql.job_for_act(job_id))).one_or_none()
            if job is None or not job.cancelling:
                return True
            # Nobody can add to it: while a job is marked nothing of it is started over.
            if (await connection.scalars(sql.any_of_job(job_id, _UNSETTLED))).one_or_none():
                return False
            await connection.execute(sql.flag_job(job_id, cancelling=False))
            return True

        return await self._store.write(unit)

    async def finish_cancelling(self, job_id: JobId) -> None:
        """Cancel all tasks of a marked job, and take the mark away."""
        ended = False
        while not ended:
            while await self.cancel_some(job_id):
                pass
            ended = await self.end_cancelling(job_id)

    async def pause_job(self, job_id: JobId) -> None:
        """Pause a job, and take back all that lies in queues. Raises as `begin_pausing`."""
        await self.begin_pausing(job_id)
        await self.finish_pausing(job_id)

    async def begin_pausing(self, job_id: JobId) -> None:
        """Mark a job: no more of its tasks are sent. What lies in queues is to be taken back.

        Raises: NotFound; IllegalMove, when there is nothing left to pause, or it is being
        cancelled.
        """

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            if job.cancelling:
                raise _being_cancelled(job_id, "pause it")
            if JobStatus(job.status) in _OVER:
                raise IllegalMove(f"job {job_id}", job.status, "pause it")
            await connection.execute(sql.flag_job(job_id, paused=True))

        await self._store.write(unit)

    async def recall_some(self, job_id: JobId) -> bool:
        """Take back some of what lies in queues for a paused job; false: nothing is left there."""
        return await self._some_of_job(job_id, _SENT, _recall, _is_paused)

    async def finish_pausing(self, job_id: JobId) -> None:
        """Take back all that lies in queues for a paused job."""
        while await self.recall_some(job_id):
            pass

    async def resume_job(self, job_id: JobId) -> None:
        """Let a paused job go on; one that is not paused just goes on. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> None:
            await _job(connection, job_id)
            await connection.execute(sql.flag_job(job_id, paused=False))

        await self._store.write(unit)

    async def prioritize_job(self, job_id: JobId, priority: int) -> None:
        """Give a job another priority, and its tasks too. Raises as `begin_prioritizing`."""
        await self.begin_prioritizing(job_id, priority)
        await self.finish_prioritizing(job_id)

    async def begin_prioritizing(self, job_id: JobId, priority: int) -> None:
        """Give a job another priority. Its tasks are to follow, some at a time.

        Those that have another one keep theirs. Raises: NotFound.
        """

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            if job.priority == priority:
                return
            old, new = MAX_PRIORITY - job.priority, MAX_PRIORITY - priority
            await connection.execute(sql.prioritize_job(job_id, priority))
            await connection.execute(sql.begin_reranking(job_id, old, new))

        await self._store.write(unit)

    async def rerank_some(self, job_id: JobId) -> bool:
        """Let some tasks follow their job's priority; false: they all do.

        One change after the other, each from the first place to the last, so that every task
        is looked at once for each: what has a priority of its own is not taken for another's.
        """

        async def unit(connection: AsyncConnection) -> bool:
            change = (await connection.execute(sql.first_reranking(job_id))).one_or_none()
            if change is None:
                return False
            up_to = change.after_seq + _SOME
            found = await connection.scalars(sql.places_of_job(job_id, change.after_seq, up_to))
            those = sql.those_of_rank(sorted(found), change.old_rank)
            await _rerank(connection, (await connection.execute(those)).all(), change.new_rank)
            job = (await connection.execute(sql.job_for_act(job_id))).one_or_none()
            if job is None or up_to >= job.total - 1:
                moved = await connection.execute(sql.end_reranking(change.id, change.after_seq))
            else:
                moved = await connection.execute(
                    sql.move_reranking(change.id, change.after_seq, up_to)
                )
            if moved.rowcount == 0:
                raise _Overtaken
            return True

        try:
            return await self._store.write(unit)
        except _Overtaken:
            return True  # somebody else has taken this step

    async def finish_prioritizing(self, job_id: JobId) -> None:
        """Let all tasks of a job follow its priority."""
        while await self.rerank_some(job_id):
            pass

    async def delete_job(self, job_id: JobId) -> None:
        """Delete a job and everything that hung on it. Raises: NotFound."""
        await self.bury_job(job_id)
        await self.finish_deleting(job_id)

    async def bury_job(self, job_id: JobId) -> None:
        """Let a job be gone at once; its tasks are to follow, some at a time. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> None:
            job = await _job(connection, job_id)
            await connection.execute(sql.bury(job_id))
            await connection.execute(sql.drop_request_keys_of(job_id))
            await connection.execute(sql.drop_rerankings_of(job_id))
            await connection.execute(sql.end_retrying(job_id))
            await connection.execute(sql.drop_job(job_id))
            await connection.execute(sql.hold_source(job.source_id))
            await connection.execute(sql.forget_source(job.source_id))

        await self._store.write(unit)

    async def drop_some(self, job_id: JobId) -> bool:
        """Remove some tasks of a buried job, and what hung on them; false: that was all."""

        async def unit(connection: AsyncConnection) -> bool:
            ids = sorted(await connection.scalars(sql.some_tasks_of(job_id, _SOME)))
            if ids:
                for statement in sql.drop_tasks(ids):
                    await connection.execute(statement)
            else:
                await connection.execute(sql.bury_for_good(job_id))
            return bool(ids)

        return await self._store.write(unit)

    async def finish_deleting(self, job_id: JobId) -> None:
        """Remove what hung on a deleted job."""
        while await self.drop_some(job_id):
            pass

    # --- what was begun -----------------------------------------------------------------

    async def jobs_cancelling(self) -> Sequence[JobId]:
        """The jobs that are being cancelled."""
        return await self._found(sql.jobs_cancelling())

    async def jobs_retrying(self) -> Sequence[JobId]:
        """The jobs that are being retried."""
        return await self._found(sql.jobs_retrying())

    async def jobs_straying(self) -> Sequence[JobId]:
        """Paused jobs that still have tasks in queues."""
        return await self._found(sql.jobs_with_stray_tasks())

    async def keys_straying(self) -> Sequence[str]:
        """Paused keys that still have tasks in their queue."""
        return await self._found(sql.keys_with_stray_tasks())

    async def jobs_reranking(self) -> Sequence[JobId]:
        """Jobs whose tasks have yet to follow their priority."""
        return await self._found(sql.jobs_reranking())

    async def jobs_buried(self) -> Sequence[JobId]:
        """Deleted jobs of which something is left."""
        return await self._found(sql.buried())

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

    async def finish_walks(self) -> None:
        """Finish all that was begun, one after the other; servers have a loop for that."""
        for job_id in await self.jobs_cancelling():
            await self.finish_cancelling(job_id)
        for job_id in await self.jobs_retrying():
            await self.finish_retrying(job_id)
        for job_id in await self.jobs_straying():
            await self.finish_pausing(job_id)
        for key in await self.keys_straying():
            await self.recall_key(key)
        for job_id in await self.jobs_reranking():
            await self.finish_prioritizing(job_id)
        for job_id in await self.jobs_buried():
            await self.finish_deleting(job_id)
        while await self.release_some():
            pass

    async def _found(self, statement: sa.Select[Any]) -> list[Any]:
        async def unit(connection: AsyncConnection) -> list[Any]:
            return list(await connection.scalars(statement))

        return await self._store.read(unit)

    # --- one key ------------------------------------------------------------------------

    async def pause_key(self, key: str) -> None:
        """Send no more tasks of a key, and take back those that lie in its queue."""
        await self.begin_pausing_key(key)
        await self.recall_key(key)

    async def begin_pausing_key(self, key: str) -> None:
        """Send no more tasks of a key. What lies in its queue is to be taken back."""
        await self._set_key(key, paused=True)

    async def recall_key(self, key: str) -> None:
        """Take back what lies in a key's queue; it is ready again, with the attempt it had."""
        await self._walk_key(key, _SENT, _recall)

    async def resume_key(self, key: str) -> None:
        await self._set_key(key, paused=False)

    async def retry_key(self, key: str, number: int) -> int:
        """Run again the tasks of a key that failed with a number; returns how many.

        Those of a job that is being cancelled are passed over.
        """
        states = (TaskState.CANCELLED, TaskState.FAILED)
        return await self._walk_key(key, states, _retry, outcome=number)

    async def _set_key(self, key: str, *, paused: bool) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(presence.add_task_keys().values(task_key=key))
            await connection.execute(presence.change_task_key(key).values(paused=paused))

        await self._store.write(unit)

    # --- walking ------------------------------------------------------------------------

    async def _some_of_job(
        self,
        job_id: JobId,
        states: Sequence[TaskState],
        act: _Act,
        goes_on: Callable[[sa.Row[Any]], bool],
    ) -> bool:
        """Do an act to some tasks of a job, of the first of these states that has any.

        False when there were none, or the job does not ask for it any more: then none is changed.
        """

        async def unit(connection: AsyncConnection) -> bool:
            for state in states:
                found = (await connection.execute(sql.tasks_of_job(job_id, state, -1, _SOME))).all()
                if found:
                    break
            else:
                return False
            ids = [row.id for row in found]
            rows = (await connection.execute(sql.those_still(ids, state))).all()
            tally = Tally()
            if rows:
                await act(connection, rows, tally)
            # Looked at once more, and held until the commit: tasks are locked before jobs.
            job = (await connection.execute(sql.job_for_act(job_id))).one_or_none()
            if job is None or not goes_on(job):
                raise _Overtaken
            await tally.write(connection)
            return True

        try:
            return await self._store.write(unit)
        except _Overtaken:
            return False

    async def _walk_key(
        self, key: str, states: Iterable[TaskState], act: _Act, *, outcome: int | None = None
    ) -> int:
        moved = 0
        for state in states:
            some = partial(sql.tasks_of_key, key, state, limit=_SOME)
            still = partial(sql.those_still, state=state, outcome=outcome)
            moved += await self._walk(some, still, act, first=Place())
        return moved

    async def _walk(
        self,
        some_after: Callable[[Sequence[int]], sa.Select[Any]],
        those_still: Callable[[Sequence[int]], sa.Select[Any]],
        act: _Act,
        *,
        first: Sequence[int],
    ) -> int:
        """Do an act to tasks, some at a time from the first to the last; returns to how many.

        Never back to the first: what is retried can fail again faster than the walk takes.
        """
        moved, place = 0, first

        async def unit(connection: AsyncConnection) -> tuple[Sequence[int], int] | None:
            found = (await connection.execute(some_after(place))).all()
            if not found:
                return None
            rows = (await connection.execute(those_still([row.id for row in found]))).all()
            done = 0
            if rows:
                tally = Tally()
                done = await act(connection, rows, tally)
                await tally.write(connection)
            return found[-1][1:], done  # behind its id stands its place

        while True:
            try:
                step = await self._store.write(unit)
            except _Overtaken:
                continue  # the same tasks again: those it was about are passed over now
            if step is None:
                return moved
            place, done = step
            moved += done


async def _job(connection: AsyncConnection, job_id: JobId) -> sa.Row[Any]:
    job: sa.Row[Any] | None = (await connection.execute(sql.job_for_act(job_id))).one_or_none()
    if job is None:
        raise NotFound("job", job_id)
    return job


def _being_cancelled(job_id: int, verb: str) -> IllegalMove:
    return IllegalMove(f"job {job_id}", "being cancelled", verb)


async def _cancelled_meanwhile(connection: AsyncConnection, job_ids: Iterable[int]) -> bool:
    """Whether one of these jobs is being cancelled; none can be until the commit if not."""
    jobs = await connection.execute(sql.hold_jobs(sorted(set(job_ids))))
    return any(job.cancelling for job in jobs)


def _is_cancelling(job: sa.Row[Any]) -> bool:
    return bool(job.cancelling)


def _is_paused(job: sa.Row[Any]) -> bool:
    return bool(job.paused)


async def _living(connection: AsyncConnection, job_id: int) -> bool:
    return (await connection.scalars(recording.living_jobs([job_id]))).one_or_none() is not None


async def _retry(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> int:
    """Run tasks again, except those of jobs that are being cancelled. Raises: _Overtaken."""
    jobs = await connection.execute(presence.jobs_of(sorted({row.job_id for row in rows})))
    going_on = {job.id for job in jobs if not job.cancelling}
    mine = [row for row in rows if row.job_id in going_on]
    if mine:
        await _again(connection, mine, tally)
        # After the tasks, and held until the commit: a cancellation that begins now finds them.
        if await _cancelled_meanwhile(connection, going_on):
            raise _Overtaken
    return len(mine)


async def _next_to_retry(
    connection: AsyncConnection, job_id: JobId, before: tuple[int, int]
) -> tuple[TaskState, list[int], tuple[int, int]]:
    """The next tasks behind a step and a place: their state, their ids, and where they end."""
    step, seq = before
    for state in _RETRIABLE[step:]:
        found = (await connection.execute(sql.tasks_of_job(job_id, state, seq, _SOME))).all()
        if found:
            return state, [row.id for row in found], (step, found[-1].place)
        step, seq = step + 1, -1
    return _RETRIABLE[-1], [], (step, seq)


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


async def _cancel(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> int:
    if await _close_attempts(connection, rows):
        await connection.execute(sql.note_cut(sorted({row.job_id for row in rows}), rows[0].now))
    await connection.execute(sql.cancel([row.id for row in rows]))
    for row in rows:
        tally.move(row.job_id, TaskState(row.state), TaskState.CANCELLED)
    return len(rows)


async def _recall(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally) -> int:
    await connection.execute(sql.recall([row.id for row in rows]))
    for row in rows:
        tally.move(row.job_id, TaskState(row.state), TaskState.READY)
    return len(rows)


async def _rerank(connection: AsyncConnection, rows: Sequence[sa.Row[Any]], rank: int) -> None:
    """Give tasks another rank; those that were sent are taken back, to be sent in their turn."""
    if not rows:
        return
    await connection.execute(sql.rank([row.id for row in rows], rank))
    if sent := [row for row in rows if TaskState(row.state) in SENT]:
        await connection.execute(sql.recall([row.id for row in sent]))
