"""Questions and changes about owners and the limits of task keys. No I/O here."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, JobStatus, TaskState
from dane_server.storage.functions import now
from dane_server.storage.tables import jobs, once, owners, task_keys, tasks, values_of

_UNFINISHED: Final = [
    status.value for status in (JobStatus.ACCEPTED, JobStatus.RUNNING, JobStatus.PAUSED)
]
#: Each of these has a place of its key.
_HOLDING: Final = values_of([*sorted(SENT), TaskState.RUNNING])
_OPEN: Final = sa.func.sum(
    jobs.c.total
    - jobs.c.succeeded
    - jobs.c.failed
    - jobs.c.forgiven
    - jobs.c.cancelled
    - jobs.c.skipped
)


# --- owners ---------------------------------------------------------------------------------


def open_by_owner() -> sa.Select[Any]:
    """How many tasks of unfinished jobs are not settled: no task is looked at, and no other job."""
    counted = (
        sa.select(jobs.c.owner_id, _OPEN.label("open"))
        .with_hint(jobs, "FORCE INDEX (job_status)", "mysql")
        .where(jobs.c.status.in_(_UNFINISHED))
        .group_by(jobs.c.owner_id)
        .subquery()
    )
    # The nameless owner is written down when there is another.
    name = sa.func.coalesce(owners.c.name, "").label("name")
    return sa.select(name, counted.c.open).join_from(
        counted, owners, owners.c.id == counted.c.owner_id, isouter=True
    )


def open_of(owner_ids: Sequence[int]) -> sa.Select[Any]:
    """The same, of some owners."""
    return (
        sa.select(jobs.c.owner_id, _OPEN.label("open"))
        .with_hint(jobs, "FORCE INDEX (job_status)", "mysql")
        .where(jobs.c.status.in_(_UNFINISHED), jobs.c.owner_id.in_(owner_ids))
        .group_by(jobs.c.owner_id)
    )


def bounded_owners() -> sa.Select[Any]:
    return sa.select(owners.c.name, owners.c.max_open).where(owners.c.max_open.is_not(None))


def owners_after(name: str | None, limit: int) -> sa.Select[Any]:
    """The next owners, in the order of their names."""
    page = sa.select(owners).order_by(owners.c.name).limit(limit)
    return page if name is None else page.where(owners.c.name > name)


def one_owner(name: str) -> sa.Select[Any]:
    return sa.select(owners).where(owners.c.name == name)


def change_owner(name: str, **values: Any) -> sa.Update:
    return sa.update(owners).where(owners.c.name == name).values(**values)


def request_key(key: str) -> sa.Select[Any]:
    return sa.select(once.c.job_id).where(once.c.request_key == key)


# --- limits of a key ------------------------------------------------------------------------


def key_limits(key: str) -> sa.Select[Any]:
    return sa.select(
        task_keys.c.concurrency,
        task_keys.c.rate,
        task_keys.c.burst,
        task_keys.c.next_at,
        now().label("now"),
    ).where(task_keys.c.task_key == key)


def holders(key: str, after: int, limit: int) -> sa.Select[Any]:
    """Tasks that have a place of a key, in the order of their ids: what is sent, and what runs."""
    return (
        sa.select(
            tasks.c.id,
            tasks.c.job_id,
            tasks.c.state,
            tasks.c.worker,
            tasks.c.started_at,
            tasks.c.queued_at,
        )
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(tasks.c.state.in_(_HOLDING), tasks.c.task_key == key, tasks.c.id > after)
        .order_by(tasks.c.id)
        .limit(limit)
    )


def held_places(key: str, most: int) -> sa.Select[Any]:
    """How many tasks have a place of a key, counted up to so many."""
    some = (
        sa.select(tasks.c.id)
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(tasks.c.state.in_(_HOLDING), tasks.c.task_key == key)
        .limit(most)
        .subquery()
    )
    return sa.select(sa.func.count()).select_from(some)


def ready_above(key: str, task_id: int, most: int) -> sa.Select[Any]:
    """How many ready tasks of a key have a higher priority than this one, up to so many."""
    mine = sa.select(tasks.c.rank).where(tasks.c.id == task_id).scalar_subquery()
    some = (
        sa.select(tasks.c.id)
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(tasks.c.state == TaskState.READY, tasks.c.task_key == key, tasks.c.rank < mine)
        .limit(most)
        .subquery()
    )
    return sa.select(sa.func.count()).select_from(some)
