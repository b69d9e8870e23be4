"""Questions of the sweeper, each a function named after it. No I/O here."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dane_core.states import SENT, TaskState
from dane_server.storage.functions import now
from dane_server.storage.tables import (
    tasks,
    values_of,
)


def overdue(state: TaskState, limit: int) -> sa.Select[Any]:
    """Tasks whose time to be looked at has come."""
    return (
        sa.select(tasks.c.id)
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


def next_due() -> sa.Select[Any]:
    """When the next task has to be looked at, and the time now."""
    waiting = [TaskState.BACKOFF, TaskState.UNROUTABLE, TaskState.DISPATCHING, TaskState.READY]
    first = (
        sa.select(sa.func.min(tasks.c.due_at))
        .where(tasks.c.state.in_(values_of(waiting)), tasks.c.due_at > now())
        .scalar_subquery()
    )
    return sa.select(sa.type_coerce(first, tasks.c.due_at.type), now())


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
        )
    )
