"""Changes that answers make, each a function named after it. No I/O here.

Those made once take what they are about when they are executed: `ids`, and the new values by
the names of their columns, as `new` has them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import TaskState
from dane_server.storage.functions import among, later, now
from dane_server.storage.tables import (
    answers,
    attempts,
    jobs,
    tasks,
)

#: What is needed of a task to write down how its attempt ended.
ENDED: Final = (
    tasks.c.id,
    tasks.c.job_id,
    tasks.c.task_key,
    tasks.c.attempt,
    tasks.c.state,
    tasks.c.allow_failure,
    tasks.c.solo,
    tasks.c.retry,
    tasks.c.tries,
    tasks.c.fanout,
    tasks.c.released,
    tasks.c.worker,
    tasks.c.queued_at,
    tasks.c.started_at,
    now().label("now"),
)


_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("ids")


def _of_job(column: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
    """Of a task's job; null if it is gone. A scalar: a join would lock the job too."""
    return sa.select(column).where(jobs.c.id == tasks.c.job_id).scalar_subquery()


@cache
def answered() -> sa.Select[Any]:
    """The tasks some answers are for, locked in the order of their ids."""
    return (
        sa.select(
            *ENDED,
            _of_job(jobs.c.started_at).label("job_started_at"),
            _of_job(jobs.c.id).is_not(None).label("is_living"),
        )
        .where(among(tasks.c.id, _IDS))
        .order_by(tasks.c.id)
        .with_for_update()
    )


def living_jobs(ids: Iterable[int]) -> sa.Select[Any]:
    return sa.select(jobs.c.id).where(jobs.c.id.in_(sorted(ids)))


def by_task(values: Mapping[int, Any]) -> Any:
    """A column value for each task: the usual one, except where a task is named."""
    [(usual, _)] = Counter(values.values()).most_common(1)
    others = {task_id: value for task_id, value in values.items() if value != usual}
    return sa.case(others, value=tasks.c.id, else_=usual) if others else usual


def another_try(delay: float) -> dict[str, Any]:
    """What a task that failed for now has instead of an end; `delay` in seconds."""
    return {
        "attempt": tasks.c.attempt + 1,
        "tries": tasks.c.tries + 1,
        "queued_at": None,
        "started_at": None,
        "due_at": later(delay),
    }


def settle(ids: Sequence[int], state: TaskState, values: Mapping[str, Any]) -> sa.Update:
    """Move locked tasks to the state their answers ask for."""
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(state=state, **values)


@cache
def settle_alike(columns: frozenset[str]) -> sa.Update:
    """The same, of tasks that get the same values in these columns."""
    values = {name: sa.bindparam(f"new_{name}", type_=tasks.c[name].type) for name in columns}
    return sa.update(tasks).where(among(tasks.c.id, _IDS)).values(values)


def new(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of columns, as a statement that is made once takes them."""
    return {f"new_{name}": value for name, value in values.items()}


@cache
def add_attempts() -> sa.Insert:
    return sa.insert(attempts)


@cache
def drop_answers() -> sa.Delete:
    return sa.delete(answers).where(among(answers.c.task_id, _IDS))


@cache
def add_answers() -> sa.Insert:
    return sa.insert(answers)


@cache
def learn_type() -> sa.Update:
    """The type DOWNLOAD `found`, where the submitter of the `job` gave none."""
    own = jobs.c.id == sa.bindparam("job")
    return sa.update(jobs).where(own, jobs.c.type.is_(None)).values(type=sa.bindparam("found"))


@cache
def shift_counts(names: frozenset[str]) -> sa.Update:
    """Add to these counters of jobs; a job with nothing active any more is finished."""
    by = {name: sa.bindparam(f"new_{name}", type_=sa.Integer) for name in sorted(names)}
    columns = {jobs.c[name]: jobs.c[name] + change for name, change in by.items()}
    active = jobs.c.active + by["active"] if "active" in by else jobs.c.active
    # Before the counters: MariaDB sees the new values of columns set earlier in the list.
    finished = {jobs.c.finished_at: sa.case((active == 0, now()), else_=None)}
    return (
        sa.update(jobs)
        .where(among(jobs.c.id, _IDS))
        .ordered_values(*finished.items(), *columns.items())
    )
