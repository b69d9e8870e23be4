"""Changes that workers ask for, and what servers share, a function each. No I/O here.

What changes many tasks at once takes at most one report of each task.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dane_core.message import Leased, Progress, Released, Started, Ticket
from dane_core.states import SENT, TaskState
from dane_server.storage.functions import insert_missing, later, now
from dane_server.storage.statements.lease import NO_STARTS, NOT_LEASED
from dane_server.storage.statements.recording import by_task
from dane_server.storage.tables import (
    jobs,
    secrets,
    task_keys,
    tasks,
    values_of,
    workers,
)

_SENT: Final = values_of(SENT)
#: A worker can be at work on a task in these without our knowing.
_NOT_BEGUN: Final = [*_SENT, TaskState.READY.value, TaskState.UNROUTABLE.value]


def _attempts(tickets: Iterable[Ticket]) -> sa.ColumnElement[bool]:
    """The tasks of some tickets whose attempt is the current one."""
    pairs = [(ticket.task_id, ticket.attempt) for ticket in tickets]
    return sa.and_(
        tasks.c.id.in_([task_id for task_id, _ in pairs]),
        sa.tuple_(tasks.c.id, tasks.c.attempt).in_(pairs),
    )


def _sendings(tickets: Iterable[Ticket]) -> sa.ColumnElement[bool]:
    """The tasks of some tickets of which nothing newer was sent."""
    triples = [(ticket.task_id, ticket.attempt, ticket.dispatch) for ticket in tickets]
    return sa.and_(
        tasks.c.id.in_([task_id for task_id, _, _ in triples]),
        sa.tuple_(tasks.c.id, tasks.c.attempt, tasks.c.dispatch).in_(triples),
    )


# --- what runs ------------------------------------------------------------------------------


def mark_running(started: Sequence[Started], on_message: float) -> sa.Update:
    """Begun from the message that was sent last: it brings the task back if the worker dies.

    Whether it still runs on that message is looked at after `on_message` seconds.
    """
    return (
        sa.update(tasks)
        .where(_sendings(one.ticket for one in started), tasks.c.state.in_(_SENT))
        .values(due_at=later(on_message), **_begun(started))
    )


def mark_running_on_lease(started: Sequence[Started], lease: float) -> sa.Update:
    """Begun from a message of which we know nothing: if the worker dies a lease must tell."""
    return (
        sa.update(tasks)
        .where(_attempts(one.ticket for one in started), tasks.c.state.in_(_NOT_BEGUN))
        .values(leased=True, due_at=later(lease), **_begun(started))
    )


def _begun(started: Sequence[Started]) -> dict[str, Any]:
    return {
        "state": TaskState.RUNNING,
        "worker": by_task({one.ticket.task_id: one.worker for one in started}),
        "started_at": later(by_task({one.ticket.task_id: -one.runtime for one in started})),
        "progress": None,
        "message": None,
    }


def hand_off(leased: Sequence[Leased]) -> sa.Update:
    """From here on these attempts live on a lease, with the worker that says so."""
    begun = later(by_task({one.ticket.task_id: -one.runtime for one in leased}))
    return (
        sa.update(tasks)
        .where(
            _attempts(one.ticket for one in leased),
            tasks.c.state.in_([*_NOT_BEGUN, TaskState.RUNNING.value]),
        )
        .values(
            state=TaskState.RUNNING,
            leased=True,
            beats=tasks.c.beats + 1,
            due_at=later(by_task({one.ticket.task_id: one.lease for one in leased})),
            worker=by_task({one.ticket.task_id: one.worker for one in leased}),
            started_at=sa.func.coalesce(tasks.c.started_at, begun),
        )
    )


def renew(leases: Mapping[Ticket, float]) -> sa.Update:
    """Leased attempts whose workers live: for so many seconds from now."""
    seconds = by_task({ticket.task_id: lease for ticket, lease in leases.items()})
    return (
        sa.update(tasks)
        .where(_attempts(leases), tasks.c.state == TaskState.RUNNING, tasks.c.leased)
        .values(beats=tasks.c.beats + 1, due_at=later(seconds))
    )


def standing_of(ids: Sequence[int]) -> sa.Select[Any]:
    """Where tasks stand of which workers speak, locked in the order of their ids."""
    return (
        sa.select(
            tasks.c.id,
            tasks.c.attempt,
            tasks.c.dispatch,
            tasks.c.state,
            tasks.c.worker,
            tasks.c.leased,
        )
        .with_hint(tasks, "FORCE INDEX (PRIMARY)", "mysql")
        .where(tasks.c.id.in_(ids))
        .order_by(tasks.c.id)
        .with_for_update()
    )


def note_progress(steps: Sequence[Progress]) -> sa.Update:
    return (
        sa.update(tasks)
        .where(_attempts(one.ticket for one in steps), tasks.c.state == TaskState.RUNNING)
        .values(
            progress=by_task({one.ticket.task_id: one.fraction for one in steps}),
            message=by_task({one.ticket.task_id: one.message or None for one in steps}),
        )
    )


def take_back(released: Sequence[Released]) -> sa.Update:
    """Handed back undone: ready again after some seconds, no attempt spent.

    What has begun is taken from the worker that has it only: another may hold a copy.
    """
    holders = [(one.ticket.task_id, one.worker) for one in released]
    tickets = [one.ticket for one in released]
    return (
        sa.update(tasks)
        .where(
            _attempts(tickets),
            sa.or_(
                sa.and_(tasks.c.state.in_(_SENT), _sendings(tickets)),
                sa.and_(
                    tasks.c.state == TaskState.RUNNING,
                    sa.tuple_(tasks.c.id, tasks.c.worker).in_(holders),
                ),
            ),
        )
        .values(
            due_at=later(by_task({one.ticket.task_id: one.delay for one in released})),
            **_BACK,
            **NO_STARTS,
        )
    )


def take_back_dropped(ids: Sequence[int]) -> sa.Update:
    """Ready again: the messages of these locked tasks are dropped."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state.in_([*_SENT, TaskState.RUNNING.value]))
        .values(due_at=now(), **_BACK)
    )


_BACK: Final[Mapping[str, Any]] = {
    "state": TaskState.READY,
    "message": None,
    "worker": None,
    "progress": None,
    "started_at": None,
    **NOT_LEASED,
}


def let_start(
    workers_of: Mapping[int, str], starters: Mapping[int, str], on_message: float
) -> sa.Update:
    """Locked tasks begin at workers that asked; each is a start more, of those in `starters`."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(sorted(workers_of)))
        .values(
            state=TaskState.RUNNING,
            worker=by_task(workers_of),
            started_at=now(),
            due_at=later(on_message),
            starts=tasks.c.starts + 1,
            starters=by_task(starters),
            progress=None,
            message=None,
            **NOT_LEASED,
        )
    )


def jobs_of(ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(jobs.c.id, jobs.c.paused, jobs.c.cancelling).where(jobs.c.id.in_(ids))


# --- who is here ----------------------------------------------------------------------------


def forget_workers(ids: Sequence[str]) -> sa.Delete:
    return sa.delete(workers).where(workers.c.id.in_(ids))


def add_worker() -> sa.Insert:
    """Two servers may hear of a new worker at once."""
    return insert_missing(workers).values(seen_at=now(), since=now())


def see_worker(worker: str) -> sa.Update:
    return see_workers([worker])


def see_workers(ids: Sequence[str]) -> sa.Update:
    return sa.update(workers).where(workers.c.id.in_(ids)).values(seen_at=now())


def inboxes_of(ids: Sequence[str]) -> sa.Select[Any]:
    """Those of some workers that are here, and where each listens."""
    return sa.select(workers.c.id, workers.c.inbox).where(workers.c.id.in_(ids))


def forget_silent_workers(seconds: float) -> sa.Delete:
    return sa.delete(workers).where(workers.c.seen_at < later(-seconds))


# --- keys and secrets -------------------------------------------------------------------------


def add_task_keys() -> sa.Insert:
    return insert_missing(task_keys)


def change_task_key(key: str) -> sa.Update:
    return sa.update(task_keys).where(task_keys.c.task_key == key)


def routable_again(ids: Sequence[int]) -> sa.Update:
    """A queue was bound for these tasks: those that still wait for one may go."""
    return (
        sa.update(tasks)
        .where(tasks.c.id.in_(ids), tasks.c.state == TaskState.UNROUTABLE)
        .values(state=TaskState.READY, due_at=now())
    )


def add_secret() -> sa.Insert:
    return insert_missing(secrets)


def secret(name: str) -> sa.Select[Any]:
    return sa.select(secrets.c.value).where(secrets.c.name == name)
