"""What is kept long enough, each question and deletion a function named after it. No I/O here.

Found by an index in the order of age, deleted by primary key, some at a time.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dane_core.states import SETTLED, JobStatus, TaskState
from dane_server.storage.functions import later
from dane_server.storage.tables import attempts, jobs, once, rejected, tasks, values_of


def _over(ends: Sequence[JobStatus], seconds: float) -> sa.ColumnElement[bool]:
    """The job has been over for so long, and nothing of it is left to be done.

    What waits for something that failed will wait for ever: it is no work left to do. A paused
    job has that status, unless it has succeeded all the same, and then nothing is left of it.
    """
    waiting = values_of(
        state for state in TaskState if state not in SETTLED and state is not TaskState.BLOCKED
    )
    return sa.and_(
        jobs.c.finished_at < later(-seconds),
        jobs.c.status.in_([end.value for end in ends]),
        jobs.c.active == 0,
        jobs.c.held == 0,
        sa.not_(jobs.c.cancelling),
        # One by one: of several states at once MariaDB would read all tasks of the job.
        *(sa.not_(_has_task_in(state)) for state in waiting),
    )


def _has_task_in(state: str) -> sa.ColumnElement[bool]:
    task = sa.select(tasks.c.id).with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
    return task.where(tasks.c.job_id == jobs.c.id, tasks.c.state == state).exists()


def old_jobs(
    ends: Sequence[JobStatus], seconds: float, limit: int, after: tuple[Any, int] | None = None
) -> sa.Select[Any]:
    """Jobs that may go, the oldest first, those behind the one where one stopped."""
    found = (
        sa.select(jobs.c.id, jobs.c.finished_at)
        .with_hint(jobs, "FORCE INDEX (job_finished)", "mysql")
        .where(_over(ends, seconds))
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(limit)
    )
    if after is None:
        return found
    finished_at, job_id = after
    return found.where(
        jobs.c.finished_at >= finished_at,
        sa.or_(jobs.c.finished_at > finished_at, jobs.c.id > job_id),
    )


def still_old(job_id: int, ends: Sequence[JobStatus], seconds: float) -> sa.Select[Any]:
    """The job, locked, if it may still go: a person may have asked for it again meanwhile."""
    return (
        sa.select(jobs.c.id, jobs.c.source_id)
        .where(jobs.c.id == job_id, _over(ends, seconds))
        .with_for_update()
    )


def old_request_keys(seconds: float, limit: int | None) -> sa.Select[Any]:
    return (
        sa.select(once.c.request_key)
        .where(once.c.created_at < later(-seconds))
        .order_by(once.c.created_at)
        .limit(limit)
    )


def number_of(found: sa.Select[Any]) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(found.subquery())


def forget_request_keys(keys: Sequence[str], seconds: float) -> sa.Delete:
    return sa.delete(once).where(once.c.request_key.in_(keys), once.c.created_at < later(-seconds))


def old_rejections(seconds: float, limit: int | None) -> sa.Select[Any]:
    return (
        sa.select(rejected.c.task_id, rejected.c.attempt, rejected.c.reason)
        .where(rejected.c.last_at < later(-seconds))
        .order_by(rejected.c.last_at)
        .limit(limit)
    )


def forget_rejections(keys: Sequence[Any], seconds: float) -> sa.Delete:
    return sa.delete(rejected).where(
        sa.tuple_(rejected.c.task_id, rejected.c.attempt, rejected.c.reason).in_(keys),
        rejected.c.last_at < later(-seconds),
    )


def tried_often(most: int, seconds: float) -> sa.Select[Any]:
    """Tasks of whose attempts one ended lately, with so high a number that there may be too many.

    Read from the index alone: it has the key of an attempt beside the time of its end.
    """
    return (
        sa.select(attempts.c.task_id)
        .where(attempts.c.finished_at > later(-seconds), attempts.c.number > most)
        .distinct()
    )


def older_attempts(task_id: int, most: int) -> sa.Select[Any]:
    """The number of the newest attempt at a task that is one too many, if there is one."""
    return (
        sa.select(attempts.c.number)
        .where(attempts.c.task_id == task_id)
        .order_by(attempts.c.number.desc())
        .offset(most)
        .limit(1)
    )


def forget_attempts(task_id: int, up_to: int) -> sa.Delete:
    return sa.delete(attempts).where(attempts.c.task_id == task_id, attempts.c.number <= up_to)
