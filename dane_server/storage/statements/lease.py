"""Questions and changes of tasks that run on a lease, each a function named after it. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import TaskState
from dane_server.storage.functions import later, now
from dane_server.storage.statements.recording import ENDED, by_task
from dane_server.storage.tables import tasks

#: Goes with every change that takes a task out of RUNNING: only what runs is leased.
NOT_LEASED: Final[Mapping[str, Any]] = {"leased": False, "beats": 0}
#: A task is no longer under suspicion of ending its workers.
NO_STARTS: Final[Mapping[str, Any]] = {"starts": 0, "starters": None}


def held(ids: Sequence[int]) -> sa.Select[Any]:
    """Tasks with all that decides who may work on them, locked in the order of their ids."""
    return (
        sa.select(
            *ENDED,
            tasks.c.dispatch,
            tasks.c.leased,
            tasks.c.beats,
            tasks.c.starts,
            tasks.c.starters,
            sa.func.coalesce(tasks.c.due_at <= now(), sa.true()).label("is_over"),
        )
        .with_hint(tasks, "FORCE INDEX (PRIMARY)", "mysql")
        .where(tasks.c.id.in_(ids))
        .order_by(tasks.c.id)
        .with_for_update()
    )


def held_by(workers: Sequence[str]) -> sa.Select[Any]:
    """The ids of tasks that run at some workers, on a lease or on their messages."""
    return sa.select(tasks.c.id).where(
        tasks.c.state == TaskState.RUNNING, tasks.c.worker.in_(workers)
    )


def count_starts(starters: Mapping[int, str]) -> sa.Update:
    """One start more for each of some locked tasks; who has begun them, as JSON."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(sorted(starters)))
        .values(starts=tasks.c.starts + 1, starters=by_task(starters))
    )


def begin_anew(ids: Sequence[int]) -> sa.Update:
    """Ready as a new attempt: whoever still works on the lost one is fenced off."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.RUNNING)
        .values(
            state=TaskState.READY,
            attempt=tasks.c.attempt + 1,
            due_at=now(),
            worker=None,
            progress=None,
            message=None,
            queued_at=None,
            started_at=None,
            **NOT_LEASED,
        )
    )


def look_soon(ids: Sequence[int], seconds: float) -> sa.Update:
    """Locked tasks that run on a message are looked at after so many seconds."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.RUNNING, sa.not_(tasks.c.leased))
        .values(due_at=later(seconds))
    )


def keep(ids: Sequence[int], lease: float) -> sa.Update:
    """Let running tasks go on where they are, on a lease from now on."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.RUNNING)
        .values(leased=True, due_at=later(lease))
    )
