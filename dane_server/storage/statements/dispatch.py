"""Questions and changes of a dispatch, each a function named after it. No I/O here."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, TaskState
from dane_server.storage.functions import insert_missing, later, now
from dane_server.storage.tables import (
    BY_OWNER,
    jobs,
    task_keys,
    tasks,
    values_of,
)


def paused_keys() -> sa.Select[Any]:
    return sa.select(task_keys.c.task_key).where(task_keys.c.paused)


def keys_ready() -> sa.Select[Any]:
    """Task keys that have something to send, and are not paused."""
    return (
        sa.select(tasks.c.task_key)
        .where(tasks.c.state == TaskState.READY, tasks.c.task_key.not_in(paused_keys()))
        .distinct()
    )


def hold_keys(keys: Sequence[str]) -> sa.Select[Any]:
    """Hold the windows of some keys: until the end of this transaction nobody else claims there.

    Always in this order. What this waits for holds windows, and waits for no task and no job.
    """
    return (
        sa.select(task_keys.c.task_key, task_keys.c.paused)
        .where(task_keys.c.task_key.in_(keys))
        .order_by(task_keys.c.task_key)
        .with_for_update()
    )


def add_keys() -> sa.Insert:
    """Keys that nobody has announced yet have a window too."""
    return insert_missing(task_keys)


def sent_of_key(key: str, at_most: int) -> sa.Select[Any]:
    """How many tasks of a key may lie in its queue, counted up to a limit."""
    some = (
        sa.select(tasks.c.id)
        .where(tasks.c.state.in_(values_of(SENT)), tasks.c.task_key == key)
        .limit(at_most)
        .subquery()
    )
    return sa.select(sa.func.count()).select_from(some)


CLAIMED: Final = (
    tasks.c.id,
    tasks.c.job_id,
    tasks.c.task_key,
    tasks.c.name,
    tasks.c.args,
    tasks.c.rank,
    tasks.c.timeout,
    tasks.c.attempt,
    tasks.c.dispatch,
    tasks.c.fanin,
)


def _job_goes_on() -> sa.ColumnElement[bool]:
    """The task's job is there, and neither paused nor being cancelled.

    A scalar: MariaDB would turn EXISTS into a join that begins with the jobs, and lock every
    ready task of theirs before it knows which come first.
    """
    stopped = sa.select(sa.or_(jobs.c.paused, jobs.c.cancelling)).where(jobs.c.id == tasks.c.job_id)
    return stopped.scalar_subquery().is_(sa.false())


def sendable(key: str, limit: int) -> sa.Select[Any]:
    """Ready tasks of a key, the most urgent first, that no other runner is looking at."""
    # Any other index finds more than `limit` rows, and locks them all before it sorts.
    return (
        sa.select(*CLAIMED)
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(
            tasks.c.state == TaskState.READY,
            tasks.c.task_key == key,
            tasks.c.due_at <= now(),
            _job_goes_on(),
        )
        .order_by(*BY_OWNER)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def claimable(ids: Sequence[int]) -> sa.Select[Any]:
    """Those of some tasks, just made ready, that may be sent at once."""
    return (
        sa.select(*CLAIMED)
        .where(
            tasks.c.id.in_(ids),
            tasks.c.state == TaskState.READY,
            tasks.c.task_key.not_in(paused_keys()),
            _job_goes_on(),
        )
        .order_by(tasks.c.rank, tasks.c.id)
    )


def claim(ids: Sequence[int], lease: float) -> sa.Update:
    """Take ready tasks for sending, under a lease of some seconds."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.READY)
        .values(state=TaskState.DISPATCHING, dispatch=tasks.c.dispatch + 1, due_at=later(lease))
    )


def start_jobs(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(jobs)
        .where(jobs.c.id.in_(ids), jobs.c.started_at.is_(None))
        .values(started_at=now())
    )


def _tickets(tickets: Sequence[tuple[int, int]]) -> sa.ColumnElement[bool]:
    """The tasks of (id, dispatch) pairs; the plain ids first, for the sake of the index."""
    return sa.and_(
        tasks.c.id.in_([task_id for task_id, _ in tickets]),
        sa.tuple_(tasks.c.id, tasks.c.dispatch).in_(tickets),
    )


def mark_queued(tickets: Sequence[tuple[int, int]], horizon: float) -> sa.Update:
    """Confirmed by the exchange. A worker may have been quicker: then this changes nothing."""
    return (
        sa.update(tasks)
        .where(_tickets(tickets), tasks.c.state == TaskState.DISPATCHING)
        .values(state=TaskState.QUEUED, queued_at=now(), due_at=later(horizon))
    )


def mark_unroutable(tickets: Sequence[tuple[int, int]], again: float) -> sa.Update:
    return (
        sa.update(tasks)
        .where(_tickets(tickets), tasks.c.state == TaskState.DISPATCHING)
        .values(
            state=TaskState.UNROUTABLE,
            due_at=later(again),
            queued_at=sa.func.coalesce(tasks.c.queued_at, now()),  # it has waited since
            message=None,
        )
    )
