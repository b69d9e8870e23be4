"""What the reader asks the store, each question a function. No I/O here.

Those without arguments are made once: they take what they are about, `ids` or the `job_id`, when
they are executed.
"""

from collections.abc import Collection, Sequence
from datetime import UTC
from functools import cache
from typing import Any, Final

import orjson
import sqlalchemy as sa

from dane_core.states import ACTIVE, FACES, SENT, JobStatus, TaskState
from dane_server.storage.functions import json_text, later, now
from dane_server.storage.statements.keys import keys_in
from dane_server.storage.tables import (
    NAMELESS,
    answers,
    attempts,
    edges,
    jobs,
    owners,
    rejected,
    releasing,
    task_keys,
    tasks,
    values_of,
)
from dane_server.storage.tables import workers as worker_table
from dane_server.storage.view import JobQuery

#: The rate of a key is counted over this many seconds, or this many attempts of all keys.
LATELY: Final = 300
LAST: Final = 5000
#: Whoever waits longest is looked for among so many of a key in each state, the first to be sent.
_HEAD: Final = 100
#: The states of a task that keep a job from being done.
NOT_DONE: Final = tuple(
    state for state in TaskState if state not in (TaskState.SUCCEEDED, TaskState.SKIPPED)
)

_OWNER_NAME: Final = (
    sa.select(owners.c.name).where(owners.c.id == jobs.c.owner_id).scalar_subquery()
)
_SHOWN: Final = (
    *(column for column in jobs.c if column.name != "tree"),
    now().label("now"),
    _OWNER_NAME.label("owner"),
)
_WAITING: Final = (TaskState.READY, TaskState.UNROUTABLE, TaskState.DISPATCHING, TaskState.QUEUED)


_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("ids", expanding=True)
_JOB: Final[sa.BindParameter[int]] = sa.bindparam("job_id", type_=sa.BigInteger)


def is_leased(task_id: int) -> sa.Select[Any]:
    return sa.select(tasks.c.leased).where(tasks.c.id == task_id)


def the_time() -> sa.Select[Any]:
    return sa.select(now())


# --- jobs -----------------------------------------------------------------------------------


@cache
def job() -> sa.Select[Any]:
    return sa.select(*_SHOWN).where(jobs.c.id == _JOB)


@cache
def tree() -> sa.Select[Any]:
    return sa.select(jobs.c.tree).where(jobs.c.id == _JOB)


def page_of_jobs(query: JobQuery, before: int | None) -> sa.Select[Any]:
    """A page of jobs, the newest first, and one more to tell whether there is a next page."""
    page = sa.select(*_SHOWN).where(*_conditions(query)).order_by(jobs.c.id.desc())
    if before is not None:
        page = page.where(jobs.c.id < before)
    return page.limit(query.limit + 1)


def _conditions(query: JobQuery) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if query.statuses:
        conditions.append(jobs.c.status.in_(sorted(query.statuses)))
    if query.source_id is not None:
        conditions.append(jobs.c.source_id == query.source_id)
    if query.owner is not None:
        conditions.append(jobs.c.owner_id == _owner_named(query.owner))
    if query.since is not None:
        conditions.append(jobs.c.created_at >= query.since.astimezone(UTC).replace(tzinfo=None))
    if query.until is not None:
        conditions.append(jobs.c.created_at < query.until.astimezone(UTC).replace(tzinfo=None))
    if query.state is not None or query.task_key is not None:
        conditions.append(_some_task(query.state, query.task_key))
    conditions += [_member_is(name, value) for name, value in sorted(query.metadata.items())]
    return conditions


def _owner_named(name: str) -> Any:
    if not name:
        return NAMELESS
    return sa.select(owners.c.id).where(owners.c.name == name).scalar_subquery()


def _some_task(number: int | None, key: str | None) -> sa.ColumnElement[bool]:
    task = sa.exists().where(tasks.c.job_id == jobs.c.id)
    if key is not None:
        task = task.where(tasks.c.task_key == key)
    if number is not None:
        plain = [s.value for s, face in FACES.items() if face.number == number]
        failed = [TaskState.FAILED, TaskState.BACKOFF]
        task = task.where(
            sa.or_(
                sa.and_(tasks.c.state.in_(plain), tasks.c.state.not_in(failed)),
                sa.and_(tasks.c.state.in_(failed), tasks.c.outcome == number),
            ),
            tasks.c.task_key.is_not(None),
        )
    return task


def _member_is(name: str, value: str) -> sa.ColumnElement[bool]:
    """A member of the job's metadata, compared as text; true and false as such."""
    path = f"$.{orjson.dumps(name).decode()}"
    return json_text(jobs.c.metadata, sa.literal(path), sa.literal(name)) == value


def unfinished() -> sa.Select[Any]:
    undone = [status.value for status in JobStatus if status is not JobStatus.SUCCEEDED]
    return sa.select(jobs.c.id).where(jobs.c.status.in_(undone)).order_by(jobs.c.id)


def of_source(source_id: str) -> sa.Select[Any]:
    return sa.select(jobs.c.id).where(jobs.c.source_id == source_id).order_by(jobs.c.id)


@cache
def first_of_each_state(*, forgiving: bool) -> sa.Select[Any]:
    """Per job and state that is not done (`NOT_DONE`, a column each), the first task in it.

    A seek in the index for each, however many tasks a job has; unless tasks that were allowed
    to fail count as done: then those before the first one that was not are passed over.
    """
    firsts = [_first_in(state, forgiving=forgiving).label(state.value) for state in NOT_DONE]
    return sa.select(jobs.c.id, *firsts).where(jobs.c.id.in_(_IDS))


def _first_in(state: TaskState, *, forgiving: bool) -> sa.ScalarSelect[Any]:
    first = (
        sa.select(tasks.c.seq)
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(tasks.c.job_id == jobs.c.id, tasks.c.state == state.value)
    )
    if forgiving and state is TaskState.FAILED:
        first = first.where(sa.not_(tasks.c.allow_failure))
    return first.order_by(tasks.c.seq).limit(1).scalar_subquery()


def outcome_at(job_id: int, seq: int) -> sa.Select[Any]:
    failed = [TaskState.FAILED, TaskState.BACKOFF]
    return sa.select(tasks.c.outcome).where(
        tasks.c.job_id == job_id, tasks.c.state.in_(failed), tasks.c.seq == seq
    )


@cache
def heads() -> sa.Select[Any]:
    return sa.select(
        jobs.c.id,
        jobs.c.source_id,
        jobs.c.source_url,
        jobs.c.metadata,
        jobs.c.shared,
    ).where(jobs.c.id.in_(_IDS))


# --- tasks ----------------------------------------------------------------------------------


def _real() -> sa.Select[Any]:
    return sa.select(tasks).where(tasks.c.task_key.is_not(None))


def task(task_id: int) -> sa.Select[Any]:
    return _real().where(tasks.c.id == task_id)


@cache
def tasks_of_job() -> sa.Select[Any]:
    return _real().where(tasks.c.job_id == _JOB).order_by(tasks.c.id)


def some_tasks_of_job(
    job_id: int, after_seq: int, up_to_seq: int, key: str | None = None
) -> sa.Select[Any]:
    """The tasks with a place behind the one and up to the other, in any order.

    A seek for each state: an index of places alone would cost each submission another entry
    for each task.
    """
    some = (
        _real()
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(
            tasks.c.job_id == job_id,
            tasks.c.state.in_(values_of(TaskState)),
            tasks.c.seq > after_seq,
            tasks.c.seq <= up_to_seq,
        )
    )
    return some if key is None else some.where(tasks.c.task_key == key)


def next_in_state(job_id: int, state: TaskState, after_seq: int, limit: int) -> sa.Select[Any]:
    """The next tasks of a job that are in a state."""
    return (
        _real()
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(tasks.c.job_id == job_id, tasks.c.state == state, tasks.c.seq > after_seq)
        .order_by(tasks.c.seq)
        .limit(limit)
    )


def attempts_of(task_id: int) -> sa.Select[Any]:
    return sa.select(attempts).where(attempts.c.task_id == task_id).order_by(attempts.c.number)


def rejected_of(task_id: int) -> sa.Select[Any]:
    return (
        sa.select(rejected)
        .where(rejected.c.task_id == task_id)
        .order_by(rejected.c.attempt, rejected.c.reason)
    )


def answer_of(task_id: int) -> sa.Select[Any]:
    return sa.select(answers.c.body).where(answers.c.task_id == task_id)


def answers_of(task_ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(answers.c.task_id, answers.c.body).where(answers.c.task_id.in_(task_ids))


def answered_in(job_id: int, after: tuple[bool, int], limit: int) -> sa.Select[Any]:
    """Which tasks of a job have answered, from the index alone: the next of the solo or others."""
    solo, task_id = after
    return (
        sa.select(answers.c.task_id)
        .where(answers.c.job_id == job_id, answers.c.solo == solo, answers.c.task_id > task_id)
        .order_by(answers.c.task_id)
        .limit(limit)
    )


@cache
def answers_of_job() -> sa.Select[Any]:
    return sa.select(answers.c.task_id, answers.c.body).where(answers.c.job_id == _JOB)


def ahead_of(task_id: int, key: str, most: int) -> sa.Select[Any]:
    """How many tasks of a key are sent before this one; of those alike no more than so many.

    Alike is what is sent, what is more urgent, and what is as urgent as this one.
    """
    mine = sa.select(tasks.c.rank).where(tasks.c.id == task_id).scalar_subquery()

    def some(state: TaskState, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        found = (
            sa.select(tasks.c.id)
            .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
            .where(tasks.c.state == state, tasks.c.task_key == key, *conditions)
            .limit(most)
        )
        return sa.select(found.subquery().c.id)

    alike = sa.union_all(
        *(some(state) for state in sorted(SENT)),
        some(TaskState.READY, tasks.c.rank < mine),
        sa.select((same := some(TaskState.READY, tasks.c.rank == mine).subquery()).c.id).where(
            same.c.id < task_id
        ),
    ).subquery()
    return sa.select(sa.func.count()).where(alike.c.id != task_id)


# --- the graph, backwards -------------------------------------------------------------------


def size_around(node: int) -> sa.Select[Any]:
    """The job of a node, and how many tasks it has."""
    return (
        sa.select(jobs.c.id, jobs.c.total)
        .join_from(tasks, jobs, jobs.c.id == tasks.c.job_id)
        .where(tasks.c.id == node)
    )


def first_join(job_id: int, total: int) -> sa.Select[Any]:
    """The first join of a job; tasks come before joins, and ids rise in the order of a graph."""
    return sa.select(tasks.c.id).where(
        tasks.c.job_id == job_id, tasks.c.state.in_(values_of(TaskState)), tasks.c.seq == total
    )


def joins_before(nodes: Sequence[int], first_join: int) -> sa.Select[Any]:
    """Which joins come right before these nodes; not asked of the tasks that do."""
    before = sa.select(edges.c.src).where(edges.c.dst.in_(nodes), edges.c.src >= first_join)
    return before.distinct()


def edges_into(nodes: Sequence[int], most: int) -> sa.Select[Any]:
    """How many edges lead into these nodes, counted up to so many."""
    some = sa.select(edges.c.src).where(edges.c.dst.in_(nodes)).limit(most).subquery()
    return sa.select(sa.func.count()).select_from(some)


def _holds_up(edge: sa.FromClause) -> sa.ColumnElement[bool]:
    """Of an edge and the task it begins at: what is behind has yet to be let go."""
    # The beginning of an edge lets its many successors go, and has not come to this one.
    is_to_come = sa.exists().where(
        releasing.c.src == edge.c.src,
        sa.not_(releasing.c.again),
        edge.c.dst > releasing.c.after_dst,
    )
    return sa.or_(sa.not_(tasks.c.released), edge.c.reopened, is_to_come)


def not_done_near(nodes: Sequence[int], look: int, limit: int) -> sa.Select[Any]:
    """Tasks that hold up one of these nodes, of those at the first so many edges into them."""
    near = (
        sa.select(edges)
        .where(edges.c.dst.in_(nodes))
        .order_by(edges.c.dst, edges.c.src)
        .limit(look)
        .subquery()
    )
    return (
        sa.select(tasks)
        .join_from(near, tasks, tasks.c.id == near.c.src)
        .where(tasks.c.task_key.is_not(None), _holds_up(near))
        .order_by(tasks.c.id)
        .limit(limit)
    )


def not_done_in(
    job_id: int, state: TaskState, nodes: Sequence[int], look: int, limit: int
) -> sa.Select[Any]:
    """The same, of the first so many tasks of their job that are in one state."""
    some = (
        sa.select(tasks.c.id)
        .where(tasks.c.job_id == job_id, tasks.c.state == state)
        .order_by(tasks.c.seq)
        .limit(look)
        .subquery()
    )
    return (
        sa.select(tasks)
        .join_from(some, tasks, tasks.c.id == some.c.id)
        .join(edges, sa.and_(edges.c.src == tasks.c.id, edges.c.dst.in_(nodes)))
        .where(tasks.c.task_key.is_not(None), _holds_up(edges))
        .order_by(tasks.c.id)
        .limit(limit)
    )


def joins_into(nodes: Sequence[int]) -> sa.Select[Any]:
    """Which of these tasks wait for which join."""
    return (
        sa.select(edges.c.dst, edges.c.src)
        .join_from(edges, tasks, tasks.c.id == edges.c.src)
        .where(edges.c.dst.in_(nodes), tasks.c.task_key.is_(None))
    )


_ANSWER: Final = (
    answers.c.task_id,
    answers.c.job_id,
    answers.c.task_key,
    answers.c.solo,
    answers.c.body,
)


# Bodies are long texts: sorted or ranked together with them, rows would go into a table that
# MariaDB makes on the disk. So ids alone are picked, and what belongs to them comes in no order.


def answers_before(nodes: Sequence[int], limit: int) -> sa.Select[Any]:
    """The first answers of direct predecessors."""
    first = (
        sa.select(answers.c.task_id, edges.c.dst)
        .join_from(edges, answers, answers.c.task_id == edges.c.src)
        .where(edges.c.dst.in_(nodes))
        .order_by(answers.c.task_id)
        .limit(limit)
        .subquery()
    )
    return sa.select(*_ANSWER, first.c.dst).join_from(
        first, answers, answers.c.task_id == first.c.task_id
    )


def solo_answers(job_ids: Sequence[int], limit: int) -> sa.Select[Any]:
    """Of each job, the newest answers of tasks whose key occurs once in it."""
    place = sa.func.row_number().over(
        partition_by=answers.c.job_id, order_by=answers.c.task_id.desc()
    )
    newest = (
        sa.select(answers.c.task_id, place.label("place"))
        .where(answers.c.job_id.in_(job_ids), answers.c.solo)
        .subquery()
    )
    return (
        sa.select(*_ANSWER)
        .join_from(newest, answers, answers.c.task_id == newest.c.task_id)
        .where(newest.c.place <= limit)
    )


def answers_for(
    job_id: int, nodes: Sequence[int], key: str, after_seq: int, limit: int
) -> sa.Select[Any]:
    """The next answers of a key that a task may see, with the tasks that gave them."""
    direct = sa.exists().where(edges.c.src == tasks.c.id, edges.c.dst.in_(nodes))
    following = (
        sa.select(tasks.c.id)
        .join_from(answers, tasks, tasks.c.id == answers.c.task_id)
        .where(
            answers.c.job_id == job_id,
            answers.c.task_key == key,
            tasks.c.seq > after_seq,
            sa.or_(answers.c.solo, direct),
        )
        .order_by(tasks.c.seq)
        .limit(limit)
        .subquery()
    )
    return (
        sa.select(tasks, answers.c.body)
        .join_from(following, tasks, tasks.c.id == following.c.id)
        .join(answers, answers.c.task_id == following.c.id)
    )


# --- keys and workers -----------------------------------------------------------------------


def known_keys() -> sa.CompoundSelect[Any]:
    """Keys that were announced or paused, and those with something to do."""
    return sa.union(sa.select(task_keys.c.task_key), keys_in(sorted(ACTIVE)))


def task_keys_in(keys: Sequence[str]) -> sa.Select[Any]:
    return sa.select(task_keys).where(task_keys.c.task_key.in_(keys))


def number_by_key(keys: Sequence[str], states: Collection[TaskState]) -> sa.Select[Any]:
    return (
        sa.select(tasks.c.task_key, tasks.c.state, sa.func.count())
        .where(tasks.c.state.in_([s.value for s in states]), tasks.c.task_key.in_(keys))
        .group_by(tasks.c.task_key, tasks.c.state)
    )


def oldest_of_key(key: str) -> sa.Select[Any]:
    """Since when a task of a key has waited, as far as it is known: of the first in each state."""
    heads = [
        sa.select(tasks.c.queued_at, tasks.c.due_at)
        .where(tasks.c.state == state.value, tasks.c.task_key == key)
        .order_by(tasks.c.rank)
        .limit(_HEAD)
        .subquery()
        for state in _WAITING
    ]
    first = sa.union_all(*(sa.select(head) for head in heads)).subquery()
    since = sa.func.min(sa.func.coalesce(first.c.queued_at, first.c.due_at))
    return sa.select(sa.type_coerce(since, tasks.c.due_at.type))


def ended_lately() -> sa.Select[Any]:
    """Of the last attempts that ended: how many of each key, and since when."""
    last = (
        sa.select(attempts.c.task_id, attempts.c.finished_at)
        .where(attempts.c.finished_at > later(-LATELY))
        .order_by(attempts.c.finished_at.desc())
        .limit(LAST)
        .subquery()
    )
    since = sa.select(sa.func.min(last.c.finished_at)).scalar_subquery()
    return (
        sa.select(
            tasks.c.task_key,
            sa.func.count(),
            sa.type_coerce(since, attempts.c.finished_at.type).label("since"),
        )
        .join_from(last, tasks, tasks.c.id == last.c.task_id)
        .group_by(tasks.c.task_key)
    )


def workers() -> sa.Select[Any]:
    return sa.select(worker_table).order_by(worker_table.c.id)
