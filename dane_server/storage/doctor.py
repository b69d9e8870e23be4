"""Gathers facts for the doctor, in batches: never the whole history, never with a lock."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import StoreOutdated
from dane_core.job import TaskId
from dane_core.states import SENT, TaskState
from dane_server.storage import migrate
from dane_server.storage.chunk import chunks
from dane_server.storage.engine import Store
from dane_server.storage.facts import (
    JobFacts,
    KeyFacts,
    LapsedLease,
    Named,
    NodeFacts,
    Overdue,
    RunningNowhere,
    StoreFacts,
    Stray,
)
from dane_server.storage.statements import doctor as sql
from dane_server.storage.sweeps import Sweeps
from dane_server.storage.tally import column

#: Jobs recounted in one statement at most, and tasks of theirs.
_JOBS: Final = 500
_TASKS: Final = 20_000
_WRONG: Final = 100
#: Tasks that are named where there are many.
_FEW: Final = 6
#: Later than any time in the store: what lies in a queue now is what lay there.
_ALWAYS: Final = datetime(9999, 1, 1)  # noqa: DTZ001 - naive, as the database's clock is
#: Of those that run: the ones on their messages. Leases are looked at apart.
_LOOKED_AFTER: Final = (TaskState.DISPATCHING, TaskState.RUNNING, TaskState.BACKOFF)
_WANTED: Final = (TaskState.READY, TaskState.UNROUTABLE, *SENT)
_STRAYING: Final = (
    TaskState.BLOCKED,
    TaskState.HELD,
    *_WANTED,
    TaskState.RUNNING,
    TaskState.BACKOFF,
)


class Examiner:
    """Reads what the doctor judges. Raises StoreUnreachable, as every reader does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sweeps = Sweeps(store)

    @property
    def connections(self) -> Mapping[str, int]:
        """How many connections to the store are in use, by what they are for."""
        return self._store.connections

    # --- jobs ---------------------------------------------------------------------------

    async def unfinished(self, after: int = 0) -> AsyncIterator[Sequence[int]]:
        """Jobs that are not over, in batches that one statement can recount; ids ascending."""
        while True:
            some = await self._rows(sql.unfinished_jobs(after, _JOBS))
            for batch in _by_weight(some):
                yield batch
            if len(some) < _JOBS:
                return
            after = some[-1].id

    async def jobs(self, ids: Sequence[int]) -> Sequence[JobFacts]:
        """The counters of some jobs, kept and counted."""
        by_job: defaultdict[int, list[Any]] = defaultdict(list)
        for row in await self._rows(sql.recounted(ids)):
            by_job[row.id].append(row)
        return [_job(rows) for _, rows in sorted(by_job.items())]

    async def nodes(self, ids: Sequence[int]) -> Sequence[NodeFacts]:
        """Tasks and joins of some jobs that wait for a wrong number of others, a hundred."""
        found = await self._rows(sql.wrong_nodes_of_jobs(ids, _WRONG))
        return [
            NodeFacts(
                id=row.id,
                job_id=row.job_id,
                key=row.task_key,
                state=TaskState(row.state),
                pending=row.pending,
                counted=int(row.counted),
                in_vain=int(row.in_vain),
            )
            for row in found
        ]

    # --- the rest -----------------------------------------------------------------------

    async def outdated(self) -> str:
        """Why the tables are not those of this version; empty when they are."""
        try:
            await migrate.check(self._store)
        except StoreOutdated as fault:
            return str(fault)
        return ""

    async def store(self, *, grace: float, since: datetime | None) -> StoreFacts:
        """Everything else; what is late is late by `grace` seconds or more.

        `since` is the time of the look before, by the database's clock.
        """
        named = await self._workers()
        return StoreFacts(
            strays=[one for state in _STRAYING for one in await self._strays(state)],
            overdue=[one for state in _LOOKED_AFTER for one in await self._overdue(state, grace)],
            lapsed=await self._lapsed(grace),
            nowhere=[
                RunningNowhere(id=row.id, attempt=row.attempt, worker=row.worker)
                for row in await self._rows(sql.running_nowhere(grace))
            ],
            named=await self._named(named),
            keys=await self._keys(named, grace, since),
        )

    async def wanted_keys(self) -> Sequence[str]:
        """Keys with tasks that wait to be sent, are on their way, or found no queue."""
        return sorted(await self.open_tasks(_WANTED))

    async def open_tasks(
        self, states: Sequence[TaskState]
    ) -> Mapping[str, Mapping[TaskState, int]]:
        """How many tasks of each key are in each of these states."""
        counts: defaultdict[str, dict[TaskState, int]] = defaultdict(dict)
        for state, key, number in await self._rows(sql.open_tasks(states)):
            counts[key][TaskState(state)] = number
        return counts

    async def _strays(self, state: TaskState) -> list[Stray]:
        return [
            Stray(
                id=row.id,
                job_id=row.job_id,
                key=row.task_key,
                state=state,
                orphaned=bool(row.orphaned),
            )
            for row in await self._rows(sql.strays(state))
        ]

    async def _overdue(self, state: TaskState, grace: float) -> list[Overdue]:
        return [
            Overdue(id=row.id, key=row.task_key, state=state, seconds=_since(row))
            for row in await self._rows(sql.long_overdue(state, grace))
        ]

    async def _lapsed(self, grace: float) -> list[LapsedLease]:
        return [
            LapsedLease(
                id=row.id,
                attempt=row.attempt,
                worker=row.worker,
                beats=row.beats,
                seconds=_since(row),
            )
            for row in await self._rows(sql.lapsed_leases(grace))
        ]

    async def _workers(self) -> Sequence[Any]:
        return await self._rows(sql.workers_at_work())

    async def _named(self, workers: Sequence[Any]) -> list[Named]:
        """What each worker said it was doing, beside what the store says of it."""
        said = [(row, TaskId(task)) for row in workers for task in orjson.loads(row.running)]
        held: dict[int, Any] = {}
        for some in chunks({task for _, task in said}):
            held |= {row.id: row for row in await self._rows(sql.tasks_named(some))}
        return [_named(row, task, held.get(task)) for row, task in said]

    async def _keys(
        self, workers: Sequence[Any], grace: float, since: datetime | None
    ) -> list[KeyFacts]:
        serving: defaultdict[str, int] = defaultdict(int)
        for row in workers:
            for key in orjson.loads(row.task_keys):
                serving[key] += 1
        counts = await self.open_tasks(_WANTED)
        idle = await self._sweeps.idle_keys()
        return [
            await self._key(
                key, counts[key], serving[key], idle=key in idle, grace=grace, since=since
            )
            for key in sorted(counts)
        ]

    async def _key(
        self,
        key: str,
        counts: Mapping[TaskState, int],
        workers: int,
        *,
        idle: bool,
        grace: float,
        since: datetime | None,
    ) -> KeyFacts:
        [known] = await self._rows(sql.known_key(key)) or [None]
        offer = orjson.loads(known.offer) if known is not None and known.offer else None
        queued, unmoved = await self._sweeps.queued(key, since or _ALWAYS)
        unroutable = await self._rows(sql.unroutable_types(key, grace))
        return KeyFacts(
            key=key,
            paused=bool(known is not None and known.paused),
            types=None if offer is None else tuple(offer["types"]),
            workers=workers,
            counts=counts,
            ready_long=[row.id for row in await self._rows(sql.ready_long(key, grace))],
            queued=queued,
            unmoved=unmoved,
            lying=[row.id for row in await self._rows(sql.some_queued(key, _FEW))],
            idle=idle,
            unroutable=[(row[0], row[1], row[2]) for row in unroutable],
            limited=known is not None and (known.concurrency, known.rate) != (None, None),
        )

    async def _rows(self, statement: Any) -> Sequence[Any]:
        async def unit(connection: AsyncConnection) -> Sequence[Any]:
            return (await connection.execute(statement)).all()

        return await self._store.read(unit)


def _by_weight(rows: Sequence[Any]) -> Iterator[list[int]]:
    """Cut jobs into batches of not too many tasks; a job is never cut."""
    batch: list[int] = []
    weight = 0
    for row in rows:
        if batch and weight + row.total > _TASKS:
            yield batch
            batch, weight = [], 0
        batch.append(row.id)
        weight += row.total
    if batch:
        yield batch


def _job(rows: Sequence[Any]) -> JobFacts:
    counted: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        counted["total"] += row.number
        if row.state is None:
            continue
        if name := column(TaskState(row.state), allow_failure=bool(row.allow_failure)):
            counted[name] += row.number
    head = rows[0]
    if head.walks:
        counted["active"] += head.walks
    return JobFacts(
        id=head.id,
        status=head.status,
        finished=head.finished_at is not None,
        kept={name: getattr(head, name) for name in ("total", *sql.COUNTERS)},
        counted=dict(counted),
    )


def _named(worker: Any, task: TaskId, held: Any) -> Named:
    if held is None:
        return Named(worker=worker.id, seen_at=worker.seen_at, id=task, state=None)
    return Named(
        worker=worker.id,
        seen_at=worker.seen_at,
        id=task,
        state=TaskState(held.state),
        attempt=held.attempt,
        holder=held.worker,
        finished_at=held.finished_at,
    )


def _since(row: Any) -> float:
    due: datetime = row.due_at
    return float((row.now - due).total_seconds())
