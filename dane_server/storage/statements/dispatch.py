"""Questions and changes of a dispatch, each a function named after it. No I/O here.

Those without arguments are made once: what they are about they take when they are executed.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import SENT, TaskState
from dane_server.storage.functions import among, behind, insert_missing, later, looked_up, now
from dane_server.storage.statements.keys import keys_in
from dane_server.storage.tables import (
    BY_OWNER,
    jobs,
    owners,
    task_keys,
    tasks,
    values_of,
)

#: In a place: behind all there is. Greater than any id.
END: Final = 2**63 - 1
#: Any other index finds all tasks of a state.
_BY_KEY: Final = "FORCE INDEX (task_ready)"

_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("ids")
_KEY: Final = sa.bindparam("key", type_=sa.String)
_KEYS: Final[sa.BindParameter[Any]] = sa.bindparam("keys")
_SECONDS: Final = sa.bindparam("seconds", type_=sa.Float)


@cache
def paused_keys() -> sa.Select[Any]:
    return sa.select(task_keys.c.task_key).where(task_keys.c.paused)


@cache
def keys_ready() -> sa.Select[Any]:
    """Task keys that have something to send, and are not paused."""
    ready = keys_in([TaskState.READY]).subquery()
    return sa.select(ready.c.task_key).where(ready.c.task_key.not_in(paused_keys()))


@cache
def hold_keys() -> sa.Select[Any]:
    """Hold the windows of some keys: until the end of this transaction nobody else claims there.

    Always in this order. What this waits for holds windows, and waits for no task and no job.
    """
    return (
        sa.select(
            task_keys.c.task_key,
            task_keys.c.paused,
            task_keys.c.concurrency,
            task_keys.c.rate,
            task_keys.c.burst,
            task_keys.c.next_at,
            now().label("now"),
        )
        .where(among(task_keys.c.task_key, _KEYS))
        .order_by(task_keys.c.task_key)
        .with_for_update()
    )


@cache
def standing_of_keys() -> sa.Select[Any]:
    """How many tasks of some `keys` are sent, of those that are open and have none ready.

    Open is what is not paused and has no limits. What is of tasks are scalars: joins would lock
    those rows too.
    """
    sent = (
        sa.select(sa.func.count())
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state.in_(values_of(SENT)), tasks.c.task_key == task_keys.c.task_key)
    )
    ready = (
        sa.select(sa.true())
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(tasks.c.state == TaskState.READY, tasks.c.task_key == task_keys.c.task_key)
        .limit(1)
    )
    return sa.select(task_keys.c.task_key, sent.scalar_subquery().label("sent")).where(
        among(task_keys.c.task_key, _KEYS),
        sa.not_(task_keys.c.paused),
        task_keys.c.rate.is_(None),
        task_keys.c.concurrency.is_(None),
        sa.func.coalesce(ready.scalar_subquery(), sa.false()) == sa.false(),
    )


@cache
def hold_free_keys() -> sa.Select[Any]:
    """The same, of those whose windows nobody else holds, and hold them; waits for nobody.

    The tasks are counted at one moment, when the first of these keys was held.
    """
    held = standing_of_keys().order_by(task_keys.c.task_key)
    return held.with_for_update(skip_locked=True)


def add_keys() -> sa.Insert:
    """Keys that nobody has announced yet have a window too."""
    return insert_missing(task_keys)


@cache
def put_off_next() -> sa.Update:
    """The next task of a held `key` is due at its rate at a `time`."""
    time = sa.bindparam("time", type_=task_keys.c.next_at.type)
    return sa.update(task_keys).where(task_keys.c.task_key == _KEY).values(next_at=time)


@cache
def in_flight() -> sa.Select[Any]:
    """How many tasks of some `keys` are sent or running, by owner and job."""
    return (
        sa.select(
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.owner_id,
            tasks.c.job_id,
            sa.func.count().label("size"),
        )
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(
            tasks.c.state.in_(values_of([*SENT, TaskState.RUNNING])), among(tasks.c.task_key, _KEYS)
        )
        .group_by(tasks.c.task_key, tasks.c.state, tasks.c.owner_id, tasks.c.job_id)
    )


@cache
def standing_of_key() -> sa.Select[int, int, bool]:
    """How many tasks of a `key` are sent and running, counted up to `window` and `running`.

    And whether any is ready.
    """

    def some(states: Iterable[TaskState]) -> sa.Select[int]:
        return (
            sa.select(tasks.c.id)
            .with_hint(tasks, _BY_KEY, "mysql")
            .where(tasks.c.state.in_(values_of(states)), tasks.c.task_key == _KEY)
        )

    def counted(states: Iterable[TaskState], at_most: str) -> sa.ScalarSelect[int]:
        up_to = some(states).limit(sa.bindparam(at_most, type_=sa.Integer)).subquery()
        return sa.select(sa.func.count()).select_from(up_to).scalar_subquery()

    return sa.select(
        counted(SENT, "window").label("sent"),
        counted([TaskState.RUNNING], "running").label("running"),
        some([TaskState.READY]).exists().label("ready"),
    )


@cache
def weights_of() -> sa.Select[Any]:
    return sa.select(owners.c.id, owners.c.weight).where(among(owners.c.id, _IDS))


#: A scalar: a join would lock the job too.
_TYPE: Final = sa.select(jobs.c.type).where(jobs.c.id == tasks.c.job_id).scalar_subquery()

CLAIMED: Final = (
    tasks.c.id,
    tasks.c.job_id,
    tasks.c.task_key,
    _TYPE.label("type"),
    tasks.c.name,
    tasks.c.args,
    tasks.c.rank,
    tasks.c.timeout,
    tasks.c.attempt,
    tasks.c.dispatch,
    tasks.c.fanin,
)


def _stopped() -> sa.ScalarSelect[bool]:
    """Whether the task's job is paused or being cancelled; null if it is gone.

    A scalar: MariaDB would turn EXISTS into a join that begins with the jobs, and lock every
    ready task of theirs before it knows which come first.
    """
    stopped = sa.select(sa.or_(jobs.c.paused, jobs.c.cancelling)).where(jobs.c.id == tasks.c.job_id)
    return stopped.scalar_subquery()


def _job_goes_on() -> sa.ColumnElement[bool]:
    return _stopped().is_(sa.false())


def _seen() -> list[sa.ColumnElement[Any]]:
    """What is to be known of a ready task before it is locked."""
    stopped = sa.func.coalesce(_stopped(), sa.true()).label("stopped")
    return [*BY_OWNER, tasks.c.due_at, now().label("now"), stopped]


def _ready_of(key: str | sa.BindParameter[str]) -> sa.ColumnElement[bool]:
    return sa.and_(tasks.c.state == TaskState.READY, tasks.c.task_key == key)


@cache
def in_front() -> sa.Select[Any]:
    """Ready tasks of a `key`, those that come first in the index: so many at `most`."""
    return (
        sa.select(*_seen())
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(_ready_of(_KEY))
        .order_by(*BY_OWNER)
        .limit(sa.bindparam("most", type_=sa.Integer))
    )


def _behind(place: Sequence[int]) -> sa.ColumnElement[bool]:
    """Behind a place; where that is the end of a job or an owner, without looking into it."""
    size = next((part for part, value in enumerate(place) if value == END), len(place))
    return behind(*BY_OWNER[:size], *place[:size])


def spread_behind(key: str, place: Sequence[int], reach: int, limit: int) -> sa.Select[Any]:
    """Of the next `reach` ready tasks behind a place as many of each owner as the limit.

    The first of each of its jobs before the second of any.
    """
    reached = (
        sa.select(*BY_OWNER, tasks.c.due_at)
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(_ready_of(key), _behind(place))
        .order_by(*BY_OWNER)
        .limit(reach)
        .subquery()
    )
    owner = (reached.c.rank, reached.c.owner_id)
    in_job = sa.func.row_number().over(
        partition_by=(*owner, reached.c.job_id), order_by=reached.c.id
    )
    turns = sa.select(*reached.c, in_job.label("turn")).where(reached.c.due_at <= now()).subquery()
    in_owner = sa.func.row_number().over(
        partition_by=(turns.c.rank, turns.c.owner_id), order_by=(turns.c.turn, turns.c.id)
    )
    spread = sa.select(turns.c.id, in_owner.label("turn")).subquery()
    return (
        sa.select(*_seen())
        .join_from(spread, tasks, tasks.c.id == spread.c.id)
        .where(spread.c.turn <= limit)
    )


def place_behind(key: str, place: Sequence[int], reach: int) -> sa.Select[Any]:
    """The place of the ready task that is so many behind another place."""
    return (
        sa.select(*BY_OWNER)
        .with_hint(tasks, _BY_KEY, "mysql")
        .where(_ready_of(key), _behind(place))
        .order_by(*BY_OWNER)
        .limit(1)
        .offset(reach - 1)
    )


@cache
def sendable() -> sa.Select[Any]:
    """Those of some tasks that may be sent, and that nobody else is looking at; locked."""
    begun_at = sa.select(jobs.c.started_at).where(jobs.c.id == tasks.c.job_id).scalar_subquery()
    # By the primary key alone, as everybody locks tasks.
    return (
        sa.select(*CLAIMED, begun_at.is_(None).label("job_not_begun"))
        .with_hint(tasks, "FORCE INDEX (PRIMARY)", "mysql")
        .where(
            among(tasks.c.id, _IDS),
            looked_up(tasks.c.state) == TaskState.READY,
            looked_up(tasks.c.due_at) <= now(),
            _job_goes_on(),
        )
        .with_for_update(skip_locked=True)
    )


@cache
def claim_free() -> sa.Update:
    """Take locked tasks that wait for nothing any more, without making them ready first."""
    return (
        sa.update(tasks)
        .where(
            among(tasks.c.id, _IDS),
            tasks.c.state.in_(values_of([TaskState.BLOCKED, TaskState.HELD])),
        )
        .values(
            state=TaskState.DISPATCHING,
            pending=0,
            dispatch=tasks.c.dispatch + 1,
            queued_at=now(),  # a worker may well be quicker than the confirmation
            due_at=later(_SECONDS),
            message=None,
        )
    )


@cache
def claim() -> sa.Update:
    """Take ready tasks for sending, under a lease of some `seconds`."""
    return (
        sa.update(tasks)
        .where(among(tasks.c.id, _IDS), tasks.c.state == TaskState.READY)
        .values(state=TaskState.DISPATCHING, dispatch=tasks.c.dispatch + 1, due_at=later(_SECONDS))
    )


@cache
def start_jobs() -> sa.Update:
    return (
        sa.update(jobs)
        .where(among(jobs.c.id, _IDS), jobs.c.started_at.is_(None))
        .values(started_at=now())
    )


def _sent_now() -> sa.ColumnElement[bool]:
    """Of `tickets`, which are pairs of an id and a dispatch, and of their `ids`.

    The plain ids first, for the sake of the index. A worker may have been quicker.
    """
    return sa.and_(
        among(tasks.c.id, _IDS),
        among(sa.tuple_(tasks.c.id, tasks.c.dispatch), sa.bindparam("tickets")),
        tasks.c.state == TaskState.DISPATCHING,
    )


@cache
def mark_queued() -> sa.Update:
    """Confirmed by the exchange; somebody looks at them again after so many `seconds`."""
    return (
        sa.update(tasks)
        .where(_sent_now())
        .values(state=TaskState.QUEUED, queued_at=now(), due_at=later(_SECONDS))
    )


@cache
def mark_unroutable() -> sa.Update:
    """No queue took them; they are tried again after so many `seconds`."""
    return (
        sa.update(tasks)
        .where(_sent_now())
        .values(
            state=TaskState.UNROUTABLE,
            due_at=later(_SECONDS),
            queued_at=sa.func.coalesce(tasks.c.queued_at, now()),  # it has waited since
            message=None,
        )
    )
