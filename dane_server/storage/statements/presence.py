"""Changes that workers ask for, and what servers share, a function each. No I/O here."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from dane_core.states import SENT, TaskState
from dane_server.storage.functions import insert_missing, later, now
from dane_server.storage.tables import (
    jobs,
    secrets,
    task_keys,
    tasks,
    values_of,
    workers,
)


def mark_running(task_id: int, attempt: int, worker: str, runtime: float) -> sa.Update:
    return (
        sa.update(tasks)
        .where(
            tasks.c.id == task_id,
            tasks.c.attempt == attempt,
            tasks.c.state.in_([*values_of(SENT), TaskState.READY, TaskState.UNROUTABLE]),
        )
        .values(
            state=TaskState.RUNNING,
            worker=worker,
            started_at=later(-runtime),
            progress=None,
            message=None,
        )
    )


def note_progress(task_id: int, attempt: int, fraction: float, message: str) -> sa.Update:
    return (
        sa.update(tasks)
        .where(
            tasks.c.id == task_id, tasks.c.attempt == attempt, tasks.c.state == TaskState.RUNNING
        )
        .values(progress=fraction, message=message or None)
    )


def take_back(task_id: int, attempt: int, dispatch: int, delay: float) -> sa.Update:
    """Handed back undone: ready again after some seconds, no attempt spent."""
    return (
        sa.update(tasks)
        .where(
            tasks.c.id == task_id,
            tasks.c.attempt == attempt,
            tasks.c.dispatch == dispatch,
            tasks.c.state.in_([*values_of(SENT), TaskState.RUNNING]),
        )
        .values(state=TaskState.READY, due_at=later(delay), message=None, worker=None)
    )


def asked_about(ids: Sequence[int]) -> sa.Select[Any]:
    return (
        sa.select(
            tasks.c.id,
            tasks.c.attempt,
            tasks.c.dispatch,
            tasks.c.state,
            jobs.c.paused,
            jobs.c.cancelling,
        )
        .join_from(tasks, jobs, jobs.c.id == tasks.c.job_id)
        .where(tasks.c.id.in_(ids))
    )


def forget_worker(worker: str) -> sa.Delete:
    return sa.delete(workers).where(workers.c.id == worker)


def add_worker() -> sa.Insert:
    return sa.insert(workers).values(seen_at=now(), since=now())


def see_worker(worker: str) -> sa.Update:
    return sa.update(workers).where(workers.c.id == worker).values(seen_at=now())


def forget_silent_workers(seconds: float) -> sa.Delete:
    return sa.delete(workers).where(workers.c.seen_at < later(-seconds))


def add_task_keys() -> sa.Insert:
    return insert_missing(task_keys)


def change_task_key(key: str) -> sa.Update:
    return sa.update(task_keys).where(task_keys.c.task_key == key)


def routable_again(keys: Sequence[str]) -> sa.Update:
    """A queue was bound for these keys: what waited for a worker may go."""
    return (
        sa.update(tasks)
        .where(tasks.c.state == TaskState.UNROUTABLE, tasks.c.task_key.in_(keys))
        .values(state=TaskState.READY, due_at=now())
    )


def add_secret() -> sa.Insert:
    return insert_missing(secrets)


def secret(name: str) -> sa.Select[Any]:
    return sa.select(secrets.c.value).where(secrets.c.name == name)
