"""Changes that answers make, each a function named after it. No I/O here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import TaskState
from dane_server.storage.functions import later, now
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


def answered(ids: Sequence[int]) -> sa.Select[Any]:
    """The tasks some answers are for, locked in the order of their ids."""
    return sa.select(*ENDED).where(tasks.c.id.in_(ids)).order_by(tasks.c.id).with_for_update()


def living_jobs(ids: Iterable[int]) -> sa.Select[Any]:
    return sa.select(jobs.c.id, jobs.c.started_at).where(jobs.c.id.in_(sorted(ids)))


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


def add_attempts() -> sa.Insert:
    return sa.insert(attempts)


def drop_answers(ids: Sequence[int]) -> sa.Delete:
    return sa.delete(answers).where(answers.c.task_id.in_(ids))


def add_answers() -> sa.Insert:
    return sa.insert(answers)


def learn_type(job_id: int, media_type: str) -> sa.Update:
    """The type DOWNLOAD found, where the submitter gave none."""
    return sa.update(jobs).where(jobs.c.id == job_id, jobs.c.type.is_(None)).values(type=media_type)


def shift_counts(ids: Sequence[int], shift: Mapping[str, int]) -> sa.Update:
    """Add to the counters of jobs; a job with nothing active any more is finished."""
    columns: dict[Any, Any] = {
        jobs.c[name]: jobs.c[name] + change for name, change in shift.items() if change
    }
    active = jobs.c.active + shift.get("active", 0)
    # Before the counters: MariaDB sees the new values of columns set earlier in the list.
    finished = {jobs.c.finished_at: sa.case((active == 0, now()), else_=None)}
    return (
        sa.update(jobs)
        .where(jobs.c.id.in_(ids))
        .ordered_values(*finished.items(), *columns.items())
    )
