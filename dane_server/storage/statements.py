"""The questions the store is asked, each a function named after it. No I/O here."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, SETTLED, TaskState
from dane_server.storage.functions import later, now
from dane_server.storage.tables import (
    answers,
    attempts,
    deletions,
    edges,
    jobs,
    once,
    secrets,
    sources,
    task_keys,
    tasks,
    workers,
)

_BOTH: Final = (("IGNORE", "mysql"), ("IGNORE", "mariadb"), ("OR IGNORE", "sqlite"))


def _insert_missing(table: sa.Table) -> sa.Insert:
    statement = sa.insert(table)
    for prefix, dialect in _BOTH:
        statement = statement.prefix_with(prefix, dialect=dialect)
    return statement


def _names(states: Iterable[TaskState]) -> list[str]:
    return [state.value for state in states]


# --- submitting -----------------------------------------------------------------------------


def claim_request_keys() -> sa.Insert:
    """Take Idempotency-Keys; one that another transaction is taking makes this one wait."""
    return _insert_missing(once).values(job_id=0, created_at=now())


def request_keys(keys: Sequence[str]) -> sa.Select[Any]:
    return sa.select(once.c.request_key, once.c.digest, once.c.job_id).where(
        once.c.request_key.in_(keys)
    )


def settle_request_key(key: str, job_id: int) -> sa.Update:
    return sa.update(once).where(once.c.request_key == key).values(job_id=job_id)


def drop_request_keys(keys: Sequence[str]) -> sa.Delete:
    return sa.delete(once).where(once.c.request_key.in_(keys))


def add_sources() -> sa.Insert:
    return _insert_missing(sources)


def source_urls(source_ids: Sequence[str]) -> sa.Select[Any]:
    """Whose they are; held so that deleting a job cannot forget them in between."""
    return (
        sa.select(sources.c.source_id, sources.c.source_url)
        .where(sources.c.source_id.in_(source_ids))
        .with_for_update(read=True)
    )


def add_jobs() -> sa.Insert:
    return sa.insert(jobs).values(created_at=now()).returning(jobs.c.id)


def add_tasks() -> sa.Insert:
    return sa.insert(tasks).values(due_at=now()).returning(tasks.c.id)


def add_edges() -> sa.Insert:
    return sa.insert(edges)


# --- dispatching ----------------------------------------------------------------------------


def keys_ready() -> sa.Select[Any]:
    """Task keys that have something to send, and are not paused."""
    return (
        sa.select(tasks.c.task_key)
        .where(tasks.c.state == TaskState.READY, tasks.c.task_key.not_in(paused_keys()))
        .distinct()
    )


def sent_of_key(key: str, at_most: int) -> sa.Select[Any]:
    """How many tasks of a key may lie in its queue, counted up to a limit."""
    some = (
        sa.select(tasks.c.id)
        .where(tasks.c.state.in_(_names(SENT)), tasks.c.task_key == key)
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
    return (
        sa.select(*CLAIMED)
        .where(
            tasks.c.state == TaskState.READY,
            tasks.c.task_key == key,
            tasks.c.due_at <= now(),
            _job_goes_on(),
        )
        .order_by(tasks.c.rank, tasks.c.id)
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


def job_heads(ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(
        jobs.c.id,
        jobs.c.source_id,
        jobs.c.source_url,
        jobs.c.type,
        jobs.c.metadata,
        jobs.c.shared,
        jobs.c.total,
        jobs.c.started_at,
    ).where(jobs.c.id.in_(ids))


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


# --- recording ------------------------------------------------------------------------------


def answered(ids: Sequence[int]) -> sa.Select[Any]:
    """The tasks some answers are for, locked in the order of their ids."""
    return (
        sa.select(
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
        .where(tasks.c.id.in_(ids))
        .order_by(tasks.c.id)
        .with_for_update()
    )


def living_jobs(ids: Iterable[int]) -> sa.Select[Any]:
    return sa.select(jobs.c.id, jobs.c.started_at).where(jobs.c.id.in_(sorted(ids)))


def by_task(values: Mapping[int, Any]) -> Any:
    """A column value for each task; just the value where all have the same."""
    distinct = set(values.values())
    if len(distinct) == 1:
        return distinct.pop()
    return sa.case(dict(values), value=tasks.c.id)


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


# --- releasing successors -------------------------------------------------------------------


def successors(ids: Sequence[int]) -> sa.Select[Any]:
    """What waits for these nodes, and for how many of them."""
    return (
        sa.select(edges.c.dst, sa.func.count())
        .where(edges.c.src.in_(ids))
        .group_by(edges.c.dst)
        .order_by(edges.c.dst)
    )


def reopened_successors(ids: Sequence[int]) -> sa.Select[Any]:
    return successors(ids).where(edges.c.reopened)


def close_edges(ids: Sequence[int]) -> sa.Update:
    return sa.update(edges).where(edges.c.src.in_(ids), edges.c.reopened).values(reopened=False)


def reopen_edges(pairs: Sequence[tuple[int, int]]) -> sa.Update:
    return (
        sa.update(edges).where(sa.tuple_(edges.c.src, edges.c.dst).in_(pairs)).values(reopened=True)
    )


def wait_for_more(ids: Sequence[int], change: int) -> sa.Update:
    """Change the number of predecessors some nodes wait for."""
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(pending=tasks.c.pending + change)


def free_nodes(ids: Sequence[int]) -> sa.Select[Any]:
    """Those of these nodes that wait for nothing any more, and have not gone ahead yet."""
    return (
        sa.select(
            tasks.c.id,
            tasks.c.job_id,
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.released,
        )
        .where(
            tasks.c.id.in_(ids),
            tasks.c.pending == 0,
            tasks.c.state.in_([TaskState.BLOCKED, TaskState.HELD]),
        )
        .order_by(tasks.c.id)
    )


def still_waiting(ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(tasks.c.id).where(tasks.c.id.in_(ids), tasks.c.pending > 0)


def pass_joins(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(tasks).where(tasks.c.id.in_(ids)).values(state=TaskState.SUCCEEDED, released=True)
    )


def make_ready(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(state=TaskState.READY, due_at=now(), message=None)
    )


def onward(ids: Sequence[int]) -> sa.Select[Any]:
    """Edges out of nodes that were done once, with the node at the other end.

    Locked: two nodes in front of one join may begin anew at the same time.
    """
    return (
        sa.select(
            edges.c.src,
            edges.c.dst,
            edges.c.reopened,
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.pending,
        )
        .join_from(edges, tasks, tasks.c.id == edges.c.dst)
        .where(edges.c.src.in_(ids))
        .order_by(edges.c.src, edges.c.dst)
        .with_for_update()
    )


def undone_again(ids: Sequence[int]) -> sa.Select[Any]:
    """Edges into some nodes from those that had let them go, but are not done now.

    Locked: one that is about to be done must see who waits for it again.
    """
    forgiven = sa.and_(tasks.c.state == TaskState.FAILED, tasks.c.allow_failure)
    return (
        sa.select(edges.c.src, edges.c.dst)
        .join_from(edges, tasks, tasks.c.id == edges.c.src)
        .where(
            edges.c.dst.in_(ids),
            tasks.c.released,
            sa.not_(edges.c.reopened),
            tasks.c.state != TaskState.SUCCEEDED,
            sa.not_(forgiven),
        )
        .order_by(edges.c.dst, edges.c.src)
        .with_for_update()
    )


def block_joins(ids: Sequence[int]) -> sa.Update:
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(state=TaskState.BLOCKED)


# --- what workers say -----------------------------------------------------------------------


def mark_running(task_id: int, attempt: int, worker: str, runtime: float) -> sa.Update:
    return (
        sa.update(tasks)
        .where(
            tasks.c.id == task_id,
            tasks.c.attempt == attempt,
            tasks.c.state.in_([*_names(SENT), TaskState.READY, TaskState.UNROUTABLE]),
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
            tasks.c.state.in_([*_names(SENT), TaskState.RUNNING]),
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
    return _insert_missing(task_keys)


def change_task_key(key: str) -> sa.Update:
    return sa.update(task_keys).where(task_keys.c.task_key == key)


def paused_keys() -> sa.Select[Any]:
    return sa.select(task_keys.c.task_key).where(task_keys.c.paused)


def routable_again(keys: Sequence[str]) -> sa.Update:
    """A queue was bound for these keys: what waited for a worker may go."""
    return (
        sa.update(tasks)
        .where(tasks.c.state == TaskState.UNROUTABLE, tasks.c.task_key.in_(keys))
        .values(state=TaskState.READY, due_at=now())
    )


# --- sweeping -------------------------------------------------------------------------------


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
        .where(tasks.c.state.in_(_names(waiting)), tasks.c.due_at > now())
        .scalar_subquery()
    )
    return sa.select(sa.type_coerce(first, tasks.c.due_at.type), now())


def lost_with_the_exchange(limit: int) -> sa.Select[Any]:
    """Tasks that were in an exchange which no longer exists."""
    states = _names([*SENT, TaskState.RUNNING])
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


# --- operating ------------------------------------------------------------------------------


ACTED: Final = (
    tasks.c.id,
    tasks.c.job_id,
    tasks.c.state,
    tasks.c.attempt,
    tasks.c.pending,
    tasks.c.released,
    tasks.c.allow_failure,
    tasks.c.worker,
    tasks.c.queued_at,
    tasks.c.started_at,
    now().label("now"),
)


def one_task(task_id: int) -> sa.Select[Any]:
    return (
        sa.select(*ACTED)
        .where(tasks.c.id == task_id, tasks.c.task_key.is_not(None))
        .with_for_update()
    )


def tasks_of_job(job_id: int, state: TaskState, after: int, limit: int) -> sa.Select[Any]:
    """Tasks of a job in a state, in order, those behind the `place` where one stopped."""
    return (
        sa.select(*ACTED, tasks.c.seq.label("place"))
        .with_hint(tasks, "FORCE INDEX (task_job)", "mysql")
        .where(
            tasks.c.job_id == job_id,
            tasks.c.state == state,
            tasks.c.seq > after,
            tasks.c.task_key.is_not(None),
        )
        .order_by(tasks.c.seq)
        .limit(limit)
        .with_for_update()
    )


def tasks_of_key(
    key: str, state: TaskState, rank: int, outcome: int | None, after: int, limit: int
) -> sa.Select[Any]:
    """Tasks of a key in a state, those behind the `place` where one stopped.

    One rank at a time: then the index gives them in order, and no others are locked.
    """
    chosen = (
        sa.select(*ACTED, tasks.c.id.label("place"))
        .with_hint(tasks, "FORCE INDEX (task_ready)", "mysql")
        .where(
            tasks.c.state == state,
            tasks.c.task_key == key,
            tasks.c.rank == rank,
            tasks.c.id > after,
        )
    )
    if outcome is not None:
        chosen = chosen.where(tasks.c.outcome == outcome)
    return chosen.order_by(tasks.c.id).limit(limit).with_for_update()


def again(ids: Sequence[int], state: TaskState, message: str | None = None) -> sa.Update:
    """Start over with a new attempt, in this state."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(
            state=state,
            attempt=tasks.c.attempt + 1,
            tries=0,
            outcome=None,
            message=message,
            due_at=now(),
            progress=None,
            worker=None,
            queued_at=None,
            started_at=None,
            finished_at=None,
        )
    )


def cancel(ids: Sequence[int]) -> sa.Update:
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids))
        .values(
            state=TaskState.CANCELLED, outcome=499, message=None, due_at=None, finished_at=now()
        )
    )


def recall(ids: Sequence[int]) -> sa.Update:
    """Take back what lies in a queue: the message there is stale from now on."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state.in_(_names(SENT)))
        .values(state=TaskState.READY, dispatch=tasks.c.dispatch + 1, due_at=now())
    )


def flag_job(job_id: int, **flags: bool) -> sa.Update:
    return sa.update(jobs).where(jobs.c.id == job_id).values(**flags)


def job_for_act(job_id: int) -> sa.Select[Any]:
    return (
        sa.select(jobs.c.id, jobs.c.status, jobs.c.paused, jobs.c.source_id)
        .where(jobs.c.id == job_id)
        .with_for_update()
    )


def jobs_cancelling() -> sa.Select[Any]:
    return sa.select(jobs.c.id).where(jobs.c.cancelling).limit(100)


def jobs_with_stray_tasks() -> sa.Select[Any]:
    """Paused jobs that still have tasks in queues."""
    stray = sa.exists().where(tasks.c.job_id == jobs.c.id, tasks.c.state.in_(_names(SENT)))
    return sa.select(jobs.c.id).where(jobs.c.paused, stray).limit(100)


def keys_with_stray_tasks() -> sa.Select[Any]:
    """Paused keys that still have tasks in their queue."""
    stray = sa.exists().where(
        tasks.c.task_key == task_keys.c.task_key, tasks.c.state.in_(_names(SENT))
    )
    return sa.select(task_keys.c.task_key).where(task_keys.c.paused, stray)


def drop_job(job_id: int) -> sa.Delete:
    return sa.delete(jobs).where(jobs.c.id == job_id)


def drop_request_keys_of(job_id: int) -> sa.Delete:
    return sa.delete(once).where(once.c.job_id == job_id)


def hold_source(source_id: str) -> sa.Select[Any]:
    return sa.select(sources.c.source_id).where(sources.c.source_id == source_id).with_for_update()


def forget_source(source_id: str) -> sa.Delete:
    """Forget a source that no job has any more."""
    used = sa.exists().where(jobs.c.source_id == source_id)
    return sa.delete(sources).where(sources.c.source_id == source_id, sa.not_(used))


def bury(job_id: int) -> sa.Insert:
    return sa.insert(deletions).values(job_id=job_id)


def buried() -> sa.Select[Any]:
    return sa.select(deletions.c.job_id).limit(100)


def bury_for_good(job_id: int) -> sa.Delete:
    return sa.delete(deletions).where(deletions.c.job_id == job_id)


def some_tasks_of(job_id: int, limit: int) -> sa.Select[Any]:
    return sa.select(tasks.c.id).where(tasks.c.job_id == job_id).limit(limit)


def drop_tasks(ids: Sequence[int]) -> Sequence[sa.Delete]:
    """Some tasks, and everything that hangs on them.

    The tasks first: that waits for whoever is recording an answer of one, and then sees it.
    """
    return (
        sa.delete(tasks).where(tasks.c.id.in_(ids)),
        sa.delete(edges).where(edges.c.src.in_(ids)),
        sa.delete(attempts).where(attempts.c.task_id.in_(ids)),
        sa.delete(answers).where(answers.c.task_id.in_(ids)),
    )


# --- secrets --------------------------------------------------------------------------------


def add_secret() -> sa.Insert:
    return _insert_missing(secrets)


def secret(name: str) -> sa.Select[Any]:
    return sa.select(secrets.c.value).where(secrets.c.name == name)


UNSETTLED: Final = [state.value for state in TaskState if state not in SETTLED]
