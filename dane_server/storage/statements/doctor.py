"""Questions of the doctor, and its recounts, each a function named after it. No I/O here.

What is kept and what is counted are read in one statement, which sees one state of the store:
a job that moves meanwhile never looks wrong.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import ACTIVE, JobStatus, TaskState
from dane_server.storage.functions import insert_missing, later, now
from dane_server.storage.tables import (
    BY_OWNER,
    deletions,
    edges,
    jobs,
    releasing,
    task_keys,
    tasks,
    values_of,
    workers,
)

COUNTERS: Final = ("active", "held", "succeeded", "failed", "forgiven", "cancelled", "skipped")
_UNFINISHED: Final = (JobStatus.ACCEPTED, JobStatus.RUNNING, JobStatus.PAUSED)
#: Tasks of one state that are looked through for strays, those due first.
_SAMPLE: Final = 2000
#: Seconds for which a job that has failed is looked at still.
_LATELY: Final = 3600


# --- jobs and their graphs --------------------------------------------------------------------


def unfinished_jobs(after: int, limit: int) -> sa.Select[Any]:
    """Jobs that are not over, by either of the two ways in which the store says so.

    And those that failed lately: one that has come to a stop by mistake looks like them.
    """
    open_ended = jobs.c.finished_at.is_(None)
    stopped = sa.and_(jobs.c.status == JobStatus.FAILED, jobs.c.finished_at > later(-_LATELY))
    ways = [open_ended, stopped, *(jobs.c.status == status.value for status in _UNFINISHED)]
    found = sa.union(
        *(
            sa.select(
                sa.select(jobs.c.id, jobs.c.total)
                .where(way, jobs.c.id > after)
                .order_by(jobs.c.id)
                .limit(limit)
                .subquery()
            )
            for way in ways
        )
    ).subquery()
    return sa.select(found.c.id, found.c.total).order_by(found.c.id).limit(limit)


def recounted(ids: Sequence[int]) -> sa.Select[Any]:
    """Some jobs as they are kept, and their tasks as they are, by state: a row for each state.

    With the number of `walks` that let successors go: each is counted as an active task.
    """
    walks = sa.select(sa.func.count()).where(releasing.c.job_id == jobs.c.id)
    return (
        sa.select(
            jobs.c.id,
            jobs.c.status,
            jobs.c.total,
            jobs.c.finished_at,
            *(jobs.c[name] for name in COUNTERS),
            tasks.c.state,
            tasks.c.allow_failure,
            sa.func.count(tasks.c.id).label("number"),
            walks.correlate(jobs).scalar_subquery().label("walks"),
        )
        .join_from(
            jobs,
            tasks,
            sa.and_(tasks.c.job_id == jobs.c.id, tasks.c.task_key.is_not(None)),
            isouter=True,
        )
        .where(jobs.c.id.in_(ids))
        .group_by(jobs.c.id, tasks.c.state, tasks.c.allow_failure)
    )


def _is_done(node: Any) -> sa.ColumnElement[bool]:
    """What waits for this node may go."""
    forgiven = sa.and_(node.c.state == TaskState.FAILED, node.c.allow_failure)
    return sa.or_(node.c.state == TaskState.SUCCEEDED, forgiven)


def wrong_nodes(condition: sa.ColumnElement[bool], limit: int) -> sa.Select[Any]:
    """Nodes whose `pending` is not what their edges say, or that wait for what is done.

    An edge holds its end back while its beginning was never done (`released`), or was asked
    to be done again (`reopened`), or is letting its many successors go and has not come to it.
    """
    before = tasks.alias("before")
    walks = releasing.c.src.is_not(None)
    to_come = sa.and_(walks, sa.not_(releasing.c.again), edges.c.dst > releasing.c.after_dst)
    holds = sa.or_(edges.c.reopened, sa.not_(before.c.released), to_come)

    def number(which: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
        return sa.func.coalesce(sa.func.sum(sa.case((which, 1), else_=0)), 0)

    counted = number(sa.and_(before.c.id.is_not(None), holds))
    in_vain = number(sa.and_(before.c.id.is_not(None), holds, _is_done(before), sa.not_(walks)))
    blocked = tasks.c.state == TaskState.BLOCKED
    return (
        sa.select(
            tasks.c.id,
            tasks.c.job_id,
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.pending,
            counted.label("counted"),
            in_vain.label("in_vain"),
        )
        .select_from(
            tasks.outerjoin(edges, edges.c.dst == tasks.c.id)
            .outerjoin(before, before.c.id == edges.c.src)
            .outerjoin(releasing, releasing.c.src == edges.c.src)
        )
        .where(condition)
        .group_by(tasks.c.id)
        .having(
            sa.or_(tasks.c.pending != counted, in_vain > 0, sa.and_(blocked, tasks.c.pending == 0))
        )
        .order_by(tasks.c.id)
        .limit(limit)
    )


def wrong_nodes_of_jobs(ids: Sequence[int], limit: int) -> sa.Select[Any]:
    """The same of all nodes of some jobs."""
    # MariaDB likes to read the whole table in the order of its ids, which it need not sort then.
    found = wrong_nodes(tasks.c.job_id.in_(ids), limit)
    return found.with_hint(tasks, "FORCE INDEX (task_job)", "mysql")


def wrong_nodes_among(ids: Sequence[int]) -> sa.Select[Any]:
    """The same of some nodes."""
    return wrong_nodes(tasks.c.id.in_(ids), len(ids))


def strays(state: TaskState) -> sa.Select[Any]:
    """Tasks of a state whose job was deleted, or is over though they are not.

    Of those that fall due first: whatever is older than they are would have been found before.
    """
    some = (
        sa.select(tasks.c.id, tasks.c.job_id, tasks.c.task_key)
        .where(tasks.c.state == state)
        .order_by(tasks.c.due_at)
        .limit(_SAMPLE)
        .subquery()
    )
    known = some.outerjoin(jobs, jobs.c.id == some.c.job_id).outerjoin(
        deletions, deletions.c.job_id == some.c.job_id
    )
    orphaned = sa.and_(jobs.c.id.is_(None), deletions.c.job_id.is_(None))
    over = jobs.c.finished_at.is_not(None) if state in ACTIVE else sa.false()
    return (
        sa.select(some.c.id, some.c.job_id, some.c.task_key, orphaned.label("orphaned"))
        .select_from(known)
        .where(sa.or_(orphaned, over))
        .order_by(some.c.id)
        .limit(100)
    )


# --- tasks that somebody should have looked at --------------------------------------------------


def long_overdue(state: TaskState, seconds: float) -> sa.Select[Any]:
    """Tasks that should have been looked at long ago."""
    return (
        sa.select(tasks.c.id, tasks.c.task_key, tasks.c.due_at, now().label("now"))
        .where(tasks.c.state == state, sa.not_(tasks.c.leased), tasks.c.due_at < later(-seconds))
        .order_by(tasks.c.due_at)
        .limit(100)
    )


def lapsed_leases(seconds: float) -> sa.Select[Any]:
    """Tasks whose lease ended long ago, and nobody has taken them back."""
    return (
        sa.select(
            tasks.c.id,
            tasks.c.attempt,
            tasks.c.worker,
            tasks.c.beats,
            tasks.c.due_at,
            now().label("now"),
        )
        .where(tasks.c.state == TaskState.RUNNING, tasks.c.leased)
        .where(tasks.c.due_at < later(-seconds))
        .order_by(tasks.c.due_at)
        .limit(100)
    )


def running_nowhere(seconds: float) -> sa.Select[Any]:
    """Tasks that run on a message, for some time, by a worker that is not there."""
    return (
        sa.select(tasks.c.id, tasks.c.attempt, tasks.c.worker)
        .join_from(tasks, workers, workers.c.id == tasks.c.worker, isouter=True)
        .where(
            tasks.c.state == TaskState.RUNNING,
            sa.not_(tasks.c.leased),
            workers.c.id.is_(None),
            sa.or_(tasks.c.started_at.is_(None), tasks.c.started_at < later(-seconds)),
        )
        .order_by(tasks.c.id)
        .limit(100)
    )


def workers_at_work() -> sa.Select[Any]:
    return sa.select(workers.c.id, workers.c.running, workers.c.task_keys, workers.c.seen_at)


def tasks_named(ids: Sequence[int]) -> sa.Select[Any]:
    """Tasks that workers say they are doing, as they stand here."""
    return sa.select(
        tasks.c.id, tasks.c.attempt, tasks.c.state, tasks.c.worker, tasks.c.finished_at
    ).where(tasks.c.id.in_(ids))


# --- keys and their queues -----------------------------------------------------------------------


def known_key(key: str) -> sa.Select[Any]:
    return sa.select(
        task_keys.c.paused, task_keys.c.offer, task_keys.c.concurrency, task_keys.c.rate
    ).where(task_keys.c.task_key == key)


def ready_long(key: str, seconds: float) -> sa.Select[Any]:
    """Of the tasks of a key that are to be sent first, those that nothing holds back."""
    first = (
        sa.select(tasks.c.id, tasks.c.job_id, tasks.c.due_at)
        .where(tasks.c.state == TaskState.READY, tasks.c.task_key == key)
        .order_by(*BY_OWNER)
        .limit(_SAMPLE)
        .subquery()
    )
    return (
        sa.select(first.c.id)
        .join_from(first, jobs, jobs.c.id == first.c.job_id)
        .where(first.c.due_at < later(-seconds), sa.not_(jobs.c.paused), sa.not_(jobs.c.cancelling))
        .limit(100)
    )


def some_queued(key: str, limit: int) -> sa.Select[Any]:
    """A few of the tasks that lie in a key's queue, as far as the store knows."""
    return (
        sa.select(tasks.c.id)
        .where(tasks.c.state == TaskState.QUEUED, tasks.c.task_key == key)
        .limit(limit)
    )


def unroutable_types(key: str, seconds: float) -> sa.Select[Any]:
    """The media types of tasks that have found no queue for some time."""
    some = (
        sa.select(tasks.c.id, tasks.c.job_id)
        .where(
            tasks.c.state == TaskState.UNROUTABLE,
            tasks.c.task_key == key,
            tasks.c.queued_at < later(-seconds),
        )
        .limit(_SAMPLE)
        .subquery()
    )
    return (
        sa.select(jobs.c.type, sa.func.count(), sa.func.min(some.c.id))
        .join_from(some, jobs, jobs.c.id == some.c.job_id)
        .group_by(jobs.c.type)
    )


def open_tasks(states: Iterable[TaskState]) -> sa.Select[Any]:
    """How many tasks of each key are in each of these states."""
    return (
        sa.select(tasks.c.state, tasks.c.task_key, sa.func.count())
        .where(tasks.c.state.in_(values_of(states)), tasks.c.task_key.is_not(None))
        .group_by(tasks.c.state, tasks.c.task_key)
    )


# --- recounts ------------------------------------------------------------------------------------


def nodes_of(job_id: int) -> sa.Select[Any]:
    return sa.select(tasks.c.id).where(tasks.c.job_id == job_id)


def lock_nodes(ids: Sequence[int]) -> sa.Select[Any]:
    """Locked in the order in which everybody locks them."""
    return sa.select(tasks.c.id).where(tasks.c.id.in_(ids)).order_by(tasks.c.id).with_for_update()


def close_edges_from_done(ids: Sequence[int]) -> sa.Update:
    """Nobody waits any more for those of these nodes that are done."""
    done = sa.select(tasks.c.id).where(tasks.c.id.in_(ids), _is_done(tasks))
    return (
        sa.update(edges)
        # The ids as well: MariaDB does not use the index for the subquery of an update.
        .where(edges.c.src.in_(ids), edges.c.src.in_(done), edges.c.reopened)
        .values(reopened=False)
    )


def let_go_of_done(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), _is_done(tasks), sa.not_(tasks.c.released))
        .values(released=True)
    )


def wait_for(ids: Sequence[int], number: int) -> sa.Update:
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(pending=number)


def blocked_by_nothing(ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(tasks.c.id, tasks.c.task_key).where(
        tasks.c.id.in_(ids), tasks.c.state == TaskState.BLOCKED, tasks.c.pending == 0
    )


def set_counters(job_id: int, counted: dict[str, int]) -> sa.Update:
    """Write down a recount; whether the job is over follows from it."""
    active = counted.get("active", 0)
    over = sa.func.coalesce(jobs.c.finished_at, now()) if active == 0 else sa.null()
    values = {name: counted.get(name, 0) for name in COUNTERS}
    return sa.update(jobs).where(jobs.c.id == job_id).values(finished_at=over, **values)


def lock_job(job_id: int) -> sa.Select[Any]:
    return sa.select(jobs.c.id).where(jobs.c.id == job_id).with_for_update()


def bury_again() -> sa.Insert:
    """Let the walk of the deletions go on with what hangs on jobs that are gone."""
    return insert_missing(deletions)
