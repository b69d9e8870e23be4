"""Who may have how much: shares and backlogs of owners, and the limits of task keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import BadSpec, Fault
from dane_core.job import JobId, Task, TaskId
from dane_core.states import TaskState
from dane_server.storage.engine import Store
from dane_server.storage.rate import Rate
from dane_server.storage.statements import presence, submission
from dane_server.storage.statements import quotas as sql
from dane_server.storage.view import MOST_ABOVE, Holder, KeyLimits, OwnerState, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTasks:
    """Tasks of unfinished jobs that are not settled, by owner, and how many some of them may have.

    Owners with nothing open are missing in `by_owner`.
    """

    by_owner: Mapping[str, int]
    most: Mapping[str, int]


class Quotas:
    """Reads and changes what owners and task keys may have. Methods may raise StoreUnreachable."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- owners -------------------------------------------------------------------------

    async def open_tasks(self) -> OpenTasks:
        """How much is open, counted from the jobs that are not finished."""

        async def unit(connection: AsyncConnection) -> OpenTasks:
            counted = await connection.execute(sql.open_by_owner())
            bounded = await connection.execute(sql.bounded_owners())
            return OpenTasks(
                by_owner={row.name: int(row.open) for row in counted},
                most={row.name: row.max_open for row in bounded},
            )

        return await self._store.read(unit)

    async def owners(self, *, after: str | None = None, limit: int = 500) -> Sequence[OwnerState]:
        """The next owners, in the order of their names."""

        async def unit(connection: AsyncConnection) -> Sequence[OwnerState]:
            rows = (await connection.execute(sql.owners_after(after, limit))).all()
            return await _owner_states(connection, rows)

        return await self._store.read(unit)

    async def change_owner(self, name: str, changes: Mapping[str, int | None]) -> OwnerState:
        """Give an owner another `weight` or `max_open`; one nobody has heard of is written down."""

        async def unit(connection: AsyncConnection) -> OwnerState:
            await connection.execute(submission.add_nameless())
            if name:
                await connection.execute(submission.add_owners(), [{"name": name}])
            await connection.execute(sql.change_owner(name, **changes))
            row = (await connection.execute(sql.one_owner(name))).one()
            return (await _owner_states(connection, [row]))[0]

        return await self._store.write(unit)

    async def is_known(self, request_key: str) -> bool:
        """Whether a request with this Idempotency-Key was taken in already."""

        async def unit(connection: AsyncConnection) -> bool:
            found = await connection.scalars(sql.request_key(request_key))
            return found.one_or_none() is not None

        return await self._store.read(unit)

    # --- keys ---------------------------------------------------------------------------

    async def key_limits(self, key: str) -> KeyLimits:
        """The limits of a task key; none for one that nobody has heard of."""
        return await self._store.read(lambda connection: _key_limits(connection, key))

    async def limit_key(self, key: str, changes: Mapping[str, float | None]) -> KeyLimits:
        """Change some of a key's limits (`concurrency`, `rate`, `burst`); None takes one away.

        A burst goes with its rate. Raises: BadSpec, for a burst without a rate.
        """

        async def unit(connection: AsyncConnection) -> KeyLimits:
            await connection.execute(presence.add_task_keys().values(task_key=key))
            values: dict[str, Any] = dict(changes)
            if "rate" in changes:
                values["next_at"] = None  # reckoned by the old rate, it may be far away
                if changes["rate"] is None:
                    values.setdefault("burst", None)
            await connection.execute(presence.change_task_key(key).values(**values))
            limits = await _key_limits(connection, key)
            if limits.burst is not None and limits.rate is None:
                raise BadSpec([Fault("burst", "goes with a rate, and there is none")])
            return limits

        return await self._store.write(unit)

    async def holders(self, key: str, *, after: int = -1, limit: int = 500) -> Sequence[Holder]:
        """The next tasks that have a place of a key, in the order of their ids."""

        async def unit(connection: AsyncConnection) -> Sequence[Holder]:
            found = await connection.execute(sql.holders(key, after, limit))
            return [_holder(row) for row in found]

        return await self._store.read(unit)


async def _owner_states(
    connection: AsyncConnection, rows: Sequence[sa.Row[Any]]
) -> list[OwnerState]:
    counted = await connection.execute(sql.open_of([row.id for row in rows]))
    open_tasks = {row.owner_id: int(row.open) for row in counted}
    return [
        OwnerState(
            name=row.name,
            weight=row.weight,
            max_open=row.max_open,
            open=open_tasks.get(row.id, 0),
        )
        for row in rows
    ]


async def standing_of(connection: AsyncConnection, task: Task) -> Standing:
    """What stands between a task and its turn; of one that is not ready nothing is looked at."""
    if task.state is not TaskState.READY:
        return Standing()
    row = (await connection.execute(sql.key_limits(task.key))).one_or_none()
    limits = limits_of(row)
    above = await connection.scalars(sql.ready_above(task.key, task.id, MOST_ABOVE))
    held, first = 0, None
    if limits.concurrency is not None:
        held = (await connection.scalars(sql.held_places(task.key, limits.concurrency))).one()
        first = (await connection.execute(sql.holders(task.key, -1, 1))).one_or_none()
    return Standing(
        limits=limits,
        held=held,
        first=_holder(first) if first else None,
        rate_wait=_rate_wait(row),
        above=above.one(),
    )


def _rate_wait(row: sa.Row[Any] | None) -> float:
    if row is None or row.rate is None:
        return 0.0
    rate = Rate(per_second=row.rate, burst=row.burst, next_at=row.next_at)
    return rate.until_next(row.now)


def limits_of(row: sa.Row[Any] | None) -> KeyLimits:
    """The limits in a row of the table of keys, if there is one."""
    if row is None:
        return KeyLimits()
    return KeyLimits(concurrency=row.concurrency, rate=row.rate, burst=row.burst)


async def _key_limits(connection: AsyncConnection, key: str) -> KeyLimits:
    return limits_of((await connection.execute(sql.key_limits(key))).one_or_none())


def _holder(row: sa.Row[Any]) -> Holder:
    since = row.started_at if row.state == TaskState.RUNNING else row.queued_at
    return Holder(
        task_id=TaskId(row.id),
        job_id=JobId(row.job_id),
        state=TaskState(row.state),
        worker=row.worker if row.state == TaskState.RUNNING else None,
        since=_utc(since),
    )


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)
