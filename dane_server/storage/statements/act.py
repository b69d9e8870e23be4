"""Questions and changes of an operator, each a function named after it. No I/O here."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, JobStatus, TaskState
from dane_server.storage.functions import behind, now
from dane_server.storage.statements.lease import NO_STARTS, NOT_LEASED
from dane_server.storage.tables import (
    BY_OWNER,
    answers,
    attempts,
    deletions,
    edges,
    jobs,
    once,
    rejected,
    releasing,
    rerankings,
    retryings,
    sources,
    task_keys,
    tasks,
    values_of,
)

#: What is said of an attempt that an act has taken away from its worker.
CUT: Final = "superseded or cancelled"

ACTED: Final = (
    tasks.c.id,
    tasks.c.job_id,
    tasks.c.state,
    tasks.c.attempt,
    tasks.c.pending,
    tasks.c.released,
    tasks.c.allow_failure,
    tasks.c.worker,
    tasks.c.queued_at,
    tasks.c.started_at,
    now().label("now"),
)


def one_task(task_id: int) -> sa.Select[Any]:
    return (
        sa.select(*ACTED)
        .where(tasks.c.id == task_id, tasks.c.task_key.is_not(None))
        .with_for_update()
    )


def tasks_of_job(job_id: int, state: TaskState, after: int, limit: int) -> sa.Select[Any]:
    """Tasks of a job in a state, in order, those behind the `place` where one stopped."""
    return (
        sa.select(tasks.c.id, tasks.c.seq.label("place"))
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(
            tasks.c.job_id == job_id,
            tasks.c.state == state,
            tasks.c.seq > after,
            tasks.c.task_key.is_not(None),
        )
        .order_by(tasks.c.seq)
        .limit(limit)
    )


def tasks_of_key(key: str, state: TaskState, after: Sequence[int], limit: int) -> sa.Select[Any]:
    """Tasks of a key in a state, in the order of the index, those behind where one stopped."""
    return (
        sa.select(tasks.c.id, *(column.label(f"at_{column.name}") for column in BY_OWNER))
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(
            tasks.c.state == state,
            tasks.c.task_key == key,
            behind(*BY_OWNER, *after),
        )
        .order_by(*BY_OWNER)
        .limit(limit)
    )


def those_still(ids: Sequence[int], state: TaskState, outcome: int | None = None) -> sa.Select[Any]:
    """Those of some tasks that are in a state now, locked in the order of their ids.

    By the primary key alone, as everybody locks them: who locks the entries of another index
    first meets a recorder that has the row and wants the entry, in a deadlock.
    """
    still = (
        sa.select(*ACTED)
        .with_hint(tasks, "FORCE INDEX (PRIMARY)", "mysql")
        .where(tasks.c.id.in_(ids), tasks.c.state == state)
    )
    if outcome is not None:
        still = still.where(tasks.c.outcome == outcome)
    return still.order_by(tasks.c.id).with_for_update()


def again(ids: Sequence[int], state: TaskState, message: str | None = None) -> sa.Update:
    """Start over with a new attempt, in this state."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(
            state=state,
            attempt=tasks.c.attempt + 1,
            tries=0,
            outcome=None,
            message=message,
            due_at=now(),
            progress=None,
            worker=None,
            queued_at=None,
            started_at=None,
            finished_at=None,
            **NOT_LEASED,
            **NO_STARTS,
        )
    )


def cancel(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(
            state=TaskState.CANCELLED,
            outcome=499,
            message=None,
            due_at=None,
            finished_at=now(),
            **NOT_LEASED,
        )
    )


def recall(ids: Sequence[int]) -> sa.Update:
    """Take back what lies in a queue: the message there is stale from now on."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state.in_(values_of(SENT)))
        .values(state=TaskState.READY, dispatch=tasks.c.dispatch + 1, due_at=now())
    )


def rank(ids: Sequence[int], new: int) -> sa.Update:
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(rank=new)


def prioritize_job(job_id: int, priority: int) -> sa.Update:
    return sa.update(jobs).where(jobs.c.id == job_id).values(priority=priority)


def begin_reranking(job_id: int, old_rank: int, new_rank: int) -> sa.Insert:
    return sa.insert(rerankings).values(job_id=job_id, old_rank=old_rank, new_rank=new_rank)


def jobs_reranking() -> sa.Select[Any]:
    return sa.select(rerankings.c.job_id).distinct()


def first_reranking(job_id: int) -> sa.Select[Any]:
    """The change of a job's priority that was asked for first, and is not over."""
    return (
        sa.select(rerankings)
        .where(rerankings.c.job_id == job_id)
        .order_by(rerankings.c.id)
        .limit(1)
    )


def move_reranking(reranking: int, old_seq: int, new_seq: int) -> sa.Update:
    """Tasks up to the new place have been gone through, unless somebody else has gone on."""
    return (
        sa.update(rerankings)
        .where(rerankings.c.id == reranking, rerankings.c.after_seq == old_seq)
        .values(after_seq=new_seq)
    )


def end_reranking(reranking: int, old_seq: int) -> sa.Delete:
    return sa.delete(rerankings).where(
        rerankings.c.id == reranking, rerankings.c.after_seq == old_seq
    )


def drop_rerankings_of(job_id: int) -> sa.Delete:
    return sa.delete(rerankings).where(rerankings.c.job_id == job_id)


def places_of_job(job_id: int, after_seq: int, up_to_seq: int) -> sa.Select[Any]:
    """The tasks of a job with a place behind the one and up to the other: a seek for each state."""
    return (
        sa.select(tasks.c.id)
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(
            tasks.c.job_id == job_id,
            tasks.c.state.in_(values_of(TaskState)),
            tasks.c.seq > after_seq,
            tasks.c.seq <= up_to_seq,
            tasks.c.task_key.is_not(None),
        )
    )


def those_of_rank(ids: Sequence[int], old: int) -> sa.Select[Any]:
    """Those of some tasks that have a rank now, locked in the order of their ids."""
    return (
        sa.select(*ACTED)
        .with_hint(tasks, "FORCE INDEX (PRIMARY)", "mysql")
        .where(tasks.c.id.in_(ids), tasks.c.rank == old)
        .order_by(tasks.c.id)
        .with_for_update()
    )


def note_cut(job_ids: Sequence[int], at: datetime) -> sa.Update:
    """Work on these jobs was taken away from workers then; it may go on for a while."""
    return sa.update(jobs).where(jobs.c.id.in_(job_ids)).values(cut_at=at)


def flag_job(job_id: int, **flags: bool) -> sa.Update:
    return sa.update(jobs).where(jobs.c.id == job_id).values(**flags)


def begin_retrying(job_id: int) -> sa.Insert:
    return sa.insert(retryings).values(job_id=job_id)


def jobs_retrying() -> sa.Select[Any]:
    return sa.select(retryings.c.job_id)


def retrying(job_id: int) -> sa.Select[Any]:
    """How far the retry of a job has come."""
    return sa.select(retryings).where(retryings.c.job_id == job_id)


def move_retrying(job_id: int, before: tuple[int, int], after: tuple[int, int]) -> sa.Update:
    """Note how far it has come now, by step and place, unless somebody else moved it."""
    step, seq = before
    return (
        sa.update(retryings)
        .where(retryings.c.job_id == job_id, retryings.c.step == step)
        .where(retryings.c.after_seq == seq)
        .values(step=after[0], after_seq=after[1])
    )


def end_retrying(job_id: int) -> sa.Delete:
    return sa.delete(retryings).where(retryings.c.job_id == job_id)


def job_for_act(job_id: int) -> sa.Select[Any]:
    return (
        sa.select(
            jobs.c.id,
            jobs.c.status,
            jobs.c.paused,
            jobs.c.cancelling,
            jobs.c.source_id,
            jobs.c.priority,
            jobs.c.total,
        )
        .where(jobs.c.id == job_id)
        .with_for_update()
    )


def hold_jobs(ids: Sequence[int]) -> sa.Select[Any]:
    """Hold some jobs, after their tasks: no act on one of them begins until the commit."""
    return (
        sa.select(jobs.c.id, jobs.c.cancelling)
        .where(jobs.c.id.in_(ids))
        .order_by(jobs.c.id)
        .with_for_update()
    )


def any_of_job(job_id: int, states: Sequence[TaskState]) -> sa.Select[Any]:
    """One task of a job that is in one of these states, if there is any."""
    return (
        sa.select(tasks.c.id)
        .where(
            tasks.c.job_id == job_id,
            tasks.c.state.in_(values_of(states)),
            tasks.c.task_key.is_not(None),
        )
        .limit(1)
    )


def jobs_cancelling() -> sa.Select[Any]:
    found = sa.select(jobs.c.id).with_hint(jobs, "FORCE INDEX (job_cancelling)", "mysql")
    return found.where(jobs.c.cancelling)


def jobs_with_stray_tasks() -> sa.Select[Any]:
    """Paused jobs that still have tasks in queues."""
    # Of both states at once MariaDB would read all tasks of the job.
    strays = (_has_task_in(state) for state in values_of(SENT))
    return sa.select(jobs.c.id).where(jobs.c.status == JobStatus.PAUSED, sa.or_(*strays))


def _has_task_in(state: str) -> sa.ColumnElement[bool]:
    task = sa.select(tasks.c.id).with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
    return task.where(tasks.c.job_id == jobs.c.id, tasks.c.state == state).exists()


def keys_with_stray_tasks() -> sa.Select[Any]:
    """Paused keys that still have tasks in their queue."""
    stray = sa.exists().where(
        tasks.c.task_key == task_keys.c.task_key, tasks.c.state.in_(values_of(SENT))
    )
    return sa.select(task_keys.c.task_key).where(task_keys.c.paused, stray)


def drop_job(job_id: int) -> sa.Delete:
    return sa.delete(jobs).where(jobs.c.id == job_id)


def drop_request_keys_of(job_id: int) -> sa.Delete:
    return sa.delete(once).where(once.c.job_id == job_id)


def hold_source(source_id: str) -> sa.Select[Any]:
    return sa.select(sources.c.source_id).where(sources.c.source_id == source_id).with_for_update()


def forget_source(source_id: str) -> sa.Delete:
    """Forget a source that no job has any more."""
    used = sa.exists().where(jobs.c.source_id == source_id)
    return sa.delete(sources).where(sources.c.source_id == source_id, sa.not_(used))


def bury(job_id: int) -> sa.Insert:
    return sa.insert(deletions).values(job_id=job_id)


def buried() -> sa.Select[Any]:
    return sa.select(deletions.c.job_id)


def bury_for_good(job_id: int) -> sa.Delete:
    return sa.delete(deletions).where(deletions.c.job_id == job_id)


def some_tasks_of(job_id: int, limit: int) -> sa.Select[Any]:
    return sa.select(tasks.c.id).where(tasks.c.job_id == job_id).limit(limit)


def drop_tasks(ids: Sequence[int]) -> Sequence[sa.Delete]:
    """Some tasks, and everything that hangs on them.

    The tasks first: that waits for whoever is recording an answer of one, and then sees it.
    """
    return (
        sa.delete(tasks).where(tasks.c.id.in_(ids)),
        sa.delete(edges).where(edges.c.src.in_(ids)),
        sa.delete(releasing).where(releasing.c.src.in_(ids)),
        sa.delete(attempts).where(attempts.c.task_id.in_(ids)),
        sa.delete(answers).where(answers.c.task_id.in_(ids)),
        sa.delete(rejected).where(rejected.c.task_id.in_(ids)),
    )
