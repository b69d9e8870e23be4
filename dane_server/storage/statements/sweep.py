"""Questions of the sweeper, each a function named after it. No I/O here."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, TaskState
from dane_server.storage.functions import later, now
from dane_server.storage.statements.act import recall
from dane_server.storage.statements.keys import keys_in
from dane_server.storage.statements.lease import NOT_LEASED
from dane_server.storage.tables import BY_OWNER, secrets, tasks, values_of, workers

#: By state and time: any other index finds all tasks of a state, or all tasks.
_BY_TIME: Final = "FORCE INDEX (task_due)"
_BY_KEY: Final = "FORCE INDEX (task_ready)"


# --- what waits for a time --------------------------------------------------------------------


def overdue(state: TaskState, limit: int) -> sa.Select[Any]:
    """Tasks whose time to be looked at has come."""
    return (
        sa.select(tasks.c.id)
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(tasks.c.state == state, tasks.c.due_at <= now())
        .order_by(tasks.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def ready_again(ids: Sequence[int], state: TaskState) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == state)
        .values(state=TaskState.READY, due_at=now())
    )


@cache
def next_due() -> sa.Select[Any]:
    """When the next task of each state has to be looked at, and the time now."""
    waiting = [TaskState.BACKOFF, TaskState.UNROUTABLE, TaskState.DISPATCHING, TaskState.READY]
    return sa.select(*(_first_due(state) for state in waiting), now())


def _first_due(state: TaskState) -> sa.ColumnElement[Any]:
    # One state at a time: then the index has the first of them, and no other is read.
    first = (
        sa.select(tasks.c.due_at)
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(tasks.c.state == state, tasks.c.due_at > now())
        .order_by(tasks.c.due_at)
        .limit(1)
    )
    return sa.type_coerce(first.scalar_subquery(), tasks.c.due_at.type)


def due_too_late(state: TaskState, ceiling: float, limit: int) -> sa.Select[Any]:
    """Tasks that would be looked at only in more than so many seconds."""
    return (
        sa.select(tasks.c.id)
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(tasks.c.state == state, tasks.c.due_at > later(ceiling))
        .limit(limit)
    )


def look_sooner(ids: Sequence[int], state: TaskState, ceiling: float) -> sa.Update:
    """Look at tasks after so many seconds at the latest."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == state, tasks.c.due_at > later(ceiling))
        .values(due_at=later(ceiling))
    )


# --- what runs --------------------------------------------------------------------------------


@cache
def the_time() -> sa.Select[Any]:
    return sa.select(now())


@cache
def running() -> sa.Select[Any]:
    """What runs on a lease, or has a timeout."""
    return (
        sa.select(
            tasks.c.id,
            tasks.c.attempt,
            tasks.c.leased,
            tasks.c.beats,
            tasks.c.due_at,
            tasks.c.timeout,
            tasks.c.started_at,
            now().label("now"),
        )
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(
            tasks.c.state == TaskState.RUNNING,
            sa.or_(tasks.c.leased, tasks.c.timeout.is_not(None)),
        )
    )


def runs_unwatched(limit: int) -> sa.Select[Any]:
    """What has run for its time on a message that the exchange may have lost."""
    return (
        sa.select(tasks.c.id)
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(
            tasks.c.state == TaskState.RUNNING,
            tasks.c.due_at <= now(),
            sa.not_(tasks.c.leased),
        )
        .limit(limit)
    )


def watch(ids: Sequence[int], lease: float) -> sa.Update:
    """Put what runs on its message onto a lease: the heartbeats of its worker renew it."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.RUNNING, sa.not_(tasks.c.leased))
        .values(leased=True, due_at=later(lease))
    )


# --- what lies in queues ----------------------------------------------------------------------


@cache
def keys_queued() -> sa.Select[Any]:
    """The keys that have tasks in a queue."""
    return keys_in([TaskState.QUEUED])


@cache
def keys_to_send() -> sa.Select[Any]:
    """The keys that have tasks to be sent, or sent and not begun."""
    return keys_in([TaskState.READY, *SENT])


def queued_since(key: str, time: datetime) -> sa.Select[Any]:
    """How many tasks of a key lie in its queue, and how many of them since before `time`."""
    unmoved = sa.func.coalesce(sa.func.sum(sa.case((tasks.c.queued_at <= time, 1), else_=0)), 0)
    return (
        sa.select(sa.func.count(), unmoved)
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state == TaskState.QUEUED, tasks.c.task_key == key)
    )


def running_on_messages(key: str) -> sa.Select[Any]:
    """What runs of a key while its message is in the exchange still."""
    return (
        sa.select(tasks.c.id)
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state == TaskState.RUNNING, tasks.c.task_key == key, sa.not_(tasks.c.leased))
    )


@cache
def workers_here() -> sa.Select[Any]:
    """What each worker can do, how much of it at once, and what it is doing."""
    return sa.select(workers.c.task_keys, workers.c.slots, workers.c.running)


def past_horizon(limit: int) -> sa.Select[Any]:
    """Tasks that have been in a queue for very long, and since when."""
    return (
        sa.select(tasks.c.id, tasks.c.task_key, tasks.c.queued_at, now().label("now"))
        .with_hint(tasks, _BY_TIME, "mysql")
        .where(tasks.c.state == TaskState.QUEUED, tasks.c.due_at <= now())
        .order_by(tasks.c.due_at)
        .limit(limit)
    )


def begun(key: str, limit: int = 50) -> list[sa.Select[Any]]:
    """When tasks of a key were queued that run, or were done not long ago."""
    return [
        sa.select(tasks.c.queued_at, now().label("now"))
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state == state, tasks.c.task_key == key, tasks.c.queued_at.is_not(None))
        .order_by(*(column.desc() for column in BY_OWNER))
        .limit(limit)
        for state in (TaskState.RUNNING, TaskState.SUCCEEDED)
    ]


def wait_longer(ids: Sequence[int], seconds: float) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.QUEUED)
        .values(due_at=later(seconds))
    )


# --- what is overtaken in its queue -----------------------------------------------------------


@cache
def ranks_waiting() -> sa.Select[Any]:
    """Of which ranks each key has tasks to be sent, or sent and not begun; by state."""
    return (
        sa.select(tasks.c.state, tasks.c.task_key, tasks.c.rank)
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state.in_(values_of([TaskState.READY, *SENT])))
        .distinct()
    )


def overtaken(key: str, rank: int, *, first: int, seconds: float, limit: int) -> sa.Select[Any]:
    """The first task of each job of a rank that has been in the queue for so long.

    Not of jobs that are served meanwhile: by one that runs, or that is of the `first` rank.
    """
    running, risen = tasks.alias("running"), tasks.alias("risen")
    served = sa.select(running.c.job_id).where(
        running.c.state == TaskState.RUNNING, running.c.task_key == key
    )
    is_served = sa.exists().where(
        risen.c.state.in_(values_of([TaskState.READY, *SENT])),
        risen.c.task_key == key,
        risen.c.rank == first,
        risen.c.owner_id == tasks.c.owner_id,
        risen.c.job_id == tasks.c.job_id,
    )
    return (
        sa.select(sa.func.min(tasks.c.id))
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(
            tasks.c.state == TaskState.QUEUED,
            tasks.c.task_key == key,
            tasks.c.rank == rank,
            tasks.c.queued_at <= later(-seconds),
            tasks.c.job_id.not_in(served),
            sa.not_(is_served),
        )
        .group_by(tasks.c.owner_id, tasks.c.job_id)
        .limit(limit)
    )


def put_forward(ids: Sequence[int], rank: int) -> sa.Update:
    """Take back what lies in a queue, to be sent as of another rank; as such it waits from now."""
    return recall(ids).where(tasks.c.state == TaskState.QUEUED).values(rank=rank)


# --- an exchange that is gone -----------------------------------------------------------------


def in_the_exchange(after: int, limit: int) -> sa.Select[Any]:
    """Tasks with a message in the exchange, those behind the id where one stopped."""
    return (
        sa.select(tasks.c.id)
        .where(tasks.c.state.in_(values_of([*SENT, TaskState.RUNNING])), tasks.c.id > after)
        .order_by(tasks.c.id)
        .limit(limit)
    )


def send_lost(ids: Sequence[int], began: datetime, claimed_until: datetime) -> sa.Update:
    """What went to the exchange that is gone, before a moment, is sent again: the same attempt.

    What was being sent at that moment was claimed until `claimed_until` at the latest.
    """
    queued = sa.and_(tasks.c.state == TaskState.QUEUED, tasks.c.queued_at <= began)
    sending = sa.and_(tasks.c.state == TaskState.DISPATCHING, tasks.c.due_at <= claimed_until)
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), sa.or_(queued, sending))
        .values(state=TaskState.READY, dispatch=tasks.c.dispatch + 1, due_at=now())
    )


def watch_since(ids: Sequence[int], began: datetime, lease: float) -> sa.Update:
    """What ran, at a moment, on a message that is gone goes on, on a lease."""
    return watch(ids, lease).where(
        sa.or_(tasks.c.started_at.is_(None), tasks.c.started_at <= began)
    )


def lost_with_the_exchange(limit: int) -> sa.Select[Any]:
    """Tasks that were in an exchange which no longer exists."""
    states = values_of([*SENT, TaskState.RUNNING])
    return (
        sa.select(tasks.c.id)
        .where(tasks.c.state.in_(states))
        .order_by(tasks.c.id)
        .limit(limit)
        .with_for_update()
    )


def send_anew(ids: Sequence[int]) -> sa.Update:
    """Ready again, as a new attempt: whoever still works on the old one is fenced off."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(
            state=TaskState.READY,
            due_at=now(),
            attempt=tasks.c.attempt + 1,
            worker=None,
            progress=None,
            message=None,
            **NOT_LEASED,
        )
    )


def replace_secret(name: str, old: str, new: str) -> sa.Update:
    """Change a value that all servers share, unless another one was quicker."""
    return (
        sa.update(secrets).where(secrets.c.name == name, secrets.c.value == old).values(value=new)
    )


def drop_secret(name: str) -> sa.Delete:
    return sa.delete(secrets).where(secrets.c.name == name)
