"""What the sweeper changes in the store: each method is one transaction, or a walk of many."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import TaskId
from dane_core.states import TaskState
from dane_server.storage.chunk import ROWS, chunks
from dane_server.storage.engine import Store
from dane_server.storage.leasing import STARTS, lose_attempts
from dane_server.storage.recording import found_out, settle
from dane_server.storage.statements import act, lease, presence, recording, sweep
from dane_server.storage.tally import Tally

#: The name under which all servers share which broker they sent to.
_EPOCH: Final = "epoch"
#: As a moment stands in the value of an epoch.
_MOMENT: Final = "%Y-%m-%dT%H:%M:%S.%f"
_IDS: Final = 5000  # read at once, without locks


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An attempt that runs on a lease, or has a timeout; times in seconds of the database."""

    task_id: TaskId
    attempt: int
    leased: bool
    beats: int
    left: float  # of its lease; what is over is negative
    timeout: float | None
    spent: float  # since it was started
    started_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Which broker the store has sent to; `began` while what another one lost is put right."""

    name: str
    began: datetime | None

    @property
    def written(self) -> str:
        return self.name if self.began is None else f"{self.name} {self.began:{_MOMENT}}"

    @classmethod
    def read(cls, value: str) -> "Epoch":
        name, _, began = value.partition(" ")
        # Naive, as the database's clock is.
        moment = datetime.strptime(began, _MOMENT) if began else None  # noqa: DTZ007
        return cls(name=name, began=moment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look at the store shows: its clock, what runs, and the epoch."""

    time: datetime
    running: Sequence[Running]
    epoch: Epoch | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """A task that has been in its queue for very long; `age` in seconds."""

    task_id: int
    key: str
    age: float


class Sweeps:
    """Makes ready what nobody else will. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def look(self) -> Sight:
        """Look at the clock, at what runs, and at the epoch."""

        async def unit(connection: AsyncConnection) -> Sight:
            time = (await connection.scalars(sweep.the_time())).one()
            epoch = (await connection.scalars(presence.secret(_EPOCH))).one_or_none()
            rows = await connection.execute(sweep.running())
            return Sight(
                time=time,
                running=[_running(row) for row in rows],
                epoch=Epoch.read(epoch) if epoch else None,
            )

        return await self._store.read(unit)

    # --- what waits for a time ----------------------------------------------------------

    async def sweep(
        self, *, limit: int = 500, silence: timedelta | None, patient_with_sendings: bool = False
    ) -> int:
        """Make ready what nobody else will; returns how many tasks are worth another sweep.

        Those are: claimed but not confirmed in time, failed for now and due again, and, as a
        probe, some that have waited for a worker long enough: when one binds it says so, and
        all of them go. Workers silent for `silence` are forgotten, if it is given. What was
        claimed is left alone by one who is `patient_with_sendings`.
        """
        states = [TaskState.DISPATCHING, TaskState.BACKOFF, TaskState.UNROUTABLE]

        async def unit(connection: AsyncConnection) -> int:
            moved = 0
            for state in states[patient_with_sendings:]:
                ids = sorted(await connection.scalars(sweep.overdue(state, limit)))
                if ids:
                    await connection.execute(sweep.ready_again(ids, state))
                    moved += len(ids) if state is not TaskState.UNROUTABLE else 0
            if silence is not None:
                await connection.execute(presence.forget_silent_workers(silence.total_seconds()))
            return moved

        return await self._store.write(unit)

    async def next_due(self) -> float | None:
        """Seconds until the next task has to be looked at; None when none waits for a time."""

        async def unit(connection: AsyncConnection) -> float | None:
            *due, time = (await connection.execute(sweep.next_due())).one()
            first = min((one for one in due if one is not None), default=None)
            return None if first is None else float((first - time).total_seconds())

        return await self._store.read(unit)

    async def look_sooner(self, ceilings: Mapping[TaskState, timedelta]) -> int:
        """No task of these states waits longer than that from now on; returns how many did.

        For a database whose clock was put back: what it wrote before is far ahead of it.
        """
        moved = 0
        for state, ceiling in ceilings.items():
            seconds = ceiling.total_seconds()
            while ids := await self._ids(sweep.due_too_late(state, seconds, _IDS)):
                changed = await self._by_id(
                    ids,
                    lambda some: sweep.look_sooner(some, state, seconds),  # noqa: B023
                )
                moved += changed
                if not changed:
                    break
        return moved

    # --- what runs ----------------------------------------------------------------------

    async def lose(self, over: Sequence[Running], reason: str, *, limit: int) -> bool:
        """Take tasks back whose lease is over; whether there is something to send now.

        One that was renewed meanwhile goes on. A task that has ended `limit` workers fails.
        """

        async def lose(
            connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally
        ) -> None:
            lost = [row for row in rows if row.leased and row.is_over]
            await lose_attempts(connection, lost, reason, tally, limit=limit)

        return await self._end(over, lose)

    async def time_out(self, over: Sequence[Running]) -> bool:
        """End attempts that ran too long, as an answer 504 would; whether one was ended."""
        timeouts = {one.task_id: one.timeout for one in over}

        async def end(
            connection: AsyncConnection, rows: Sequence[sa.Row[Any]], tally: Tally
        ) -> None:
            endings = [found_out(row, 504, _too_long(timeouts[row.id])) for row in rows]
            await settle(connection, endings, tally)

        return await self._end(over, end)

    async def _end(self, over: Sequence[Running], end: Callable[..., Any]) -> bool:
        """End attempts that still run, some in each transaction; whether there were any.

        An attempt that was begun anew since, by another worker, is not the one that was seen.
        """
        attempts = {one.task_id: (one.attempt, one.started_at) for one in over}
        ended = 0

        async def unit(connection: AsyncConnection, ids: Sequence[int]) -> int:
            found = [
                row
                for row in await connection.execute(lease.held(ids))
                if row.state == TaskState.RUNNING
                and (row.attempt, row.started_at) == attempts[row.id]
            ]
            rows = await _of_living_jobs(connection, found)
            if rows:
                tally = Tally()
                await end(connection, rows, tally)
                await tally.write(connection)
            return len(rows)

        for ids in chunks(sorted(attempts), ROWS):
            ended += await self._store.write(lambda connection: unit(connection, ids))  # noqa: B023
        return ended > 0

    async def watch_unwatched(self, given: timedelta) -> None:
        """Put onto a lease what has run on a message for so long that nobody may have it.

        If it runs, the heartbeats of its worker renew the lease; if not, the lease ends.
        """
        await self._watch(await self._ids(sweep.runs_unwatched(_IDS)), given)

    async def watch_key(self, key: str, given: timedelta) -> None:
        """Put onto a lease what runs of a key whose queue is gone."""
        await self._watch(await self._ids(sweep.running_on_messages(key)), given)

    async def _watch(self, ids: Sequence[int], given: timedelta) -> None:
        await self._by_id(ids, lambda some: sweep.watch(some, given.total_seconds()))

    # --- what lies in queues ------------------------------------------------------------

    async def keys_queued(self) -> list[str]:
        """The keys that have tasks in a queue."""

        async def unit(connection: AsyncConnection) -> list[str]:
            return sorted(await connection.scalars(sweep.keys_queued()))

        return await self._store.read(unit)

    async def keys_to_send(self) -> list[str]:
        """The keys that have tasks to be sent, or sent and not begun."""

        async def unit(connection: AsyncConnection) -> list[str]:
            return sorted(await connection.scalars(sweep.keys_to_send()))

        return await self._store.read(unit)

    async def queued(self, key: str, since: datetime) -> tuple[int, int]:
        """How many tasks of a key lie in its queue, and how many of them lay there at `since`."""

        async def unit(connection: AsyncConnection) -> tuple[int, int]:
            count, unmoved = (await connection.execute(sweep.queued_since(key, since))).one()
            return int(count), int(unmoved)

        return await self._store.read(unit)

    async def idle_keys(self) -> frozenset[str]:
        """The keys of which every worker has room for another task."""

        async def unit(connection: AsyncConnection) -> frozenset[str]:
            idle: set[str] = set()
            busy: set[str] = set()
            for row in await connection.execute(sweep.workers_here()):
                has_room = len(orjson.loads(row.running)) < row.slots
                (idle if has_room else busy).update(orjson.loads(row.task_keys))
            return frozenset(idle - busy)

        return await self._store.read(unit)

    async def aged(self, limit: int) -> list[Aged]:
        """What has been in a queue beyond the horizon."""

        async def unit(connection: AsyncConnection) -> list[Aged]:
            return [
                Aged(task_id=row.id, key=row.task_key, age=_seconds(row.now, row.queued_at))
                for row in await connection.execute(sweep.past_horizon(limit))
            ]

        return await self._store.read(unit)

    async def last_begun(self, key: str) -> float | None:
        """How many seconds ago the last of those tasks of a key was queued that have begun."""

        async def unit(connection: AsyncConnection) -> float | None:
            ages = [
                _seconds(row.now, row.queued_at)
                for statement in sweep.begun(key)
                for row in await connection.execute(statement)
            ]
            return min(ages, default=None)

        return await self._store.read(unit)

    async def wait_longer(self, ids: Sequence[int], horizon: timedelta) -> None:
        await self._by_id(ids, lambda some: sweep.wait_longer(some, horizon.total_seconds()))

    async def send_again(self, ids: Sequence[int]) -> int:
        """Take tasks back that lie in queues; returns how many. Their messages are stale now."""
        return await self._by_id(ids, act.recall)

    async def put_forward(self, ageing: timedelta, *, limit: int = 100) -> list[TaskId]:
        """Take back what has been overtaken in its queue for so long that it is no less urgent.

        A task counts as more urgent by one with each `ageing` that it has waited. One of each job
        that has nothing else under way is given the rank of the most urgent of its key as soon as
        it has waited for that. Returns the tasks; their messages are stale now.
        """
        forward: list[TaskId] = []
        for key, ranks in (await self._ranks_waiting()).items():
            first = min(min(some) for some in ranks.values())
            for rank in sorted(ranks[TaskState.QUEUED] - {first}):
                seconds = ageing.total_seconds() * (rank - first)
                found = sweep.overtaken(key, rank, first=first, seconds=seconds, limit=limit)
                if ids := await self._ids(found):
                    await self._by_id(ids, lambda some: sweep.put_forward(some, first))  # noqa: B023
                    forward += map(TaskId, ids)
        return forward

    async def _ranks_waiting(self) -> Mapping[str, Mapping[TaskState, set[int]]]:
        """Of keys with something in a queue: the ranks of what waits, by its state."""

        async def unit(connection: AsyncConnection) -> Mapping[str, Mapping[TaskState, set[int]]]:
            ranks: dict[str, defaultdict[TaskState, set[int]]] = {}
            for row in await connection.execute(sweep.ranks_waiting()):
                by_state = ranks.setdefault(row.task_key, defaultdict(set))
                by_state[TaskState(row.state)].add(row.rank)
            return {key: some for key, some in ranks.items() if some[TaskState.QUEUED]}

        return await self._store.read(unit)

    # --- an exchange that is gone -------------------------------------------------------

    async def begin_epoch(self, name: str, *, after: Epoch | None) -> Epoch | None:
        """Agree that a broker is the one to send to from now on; None: another was quicker.

        The first of a store begins without anything lost. Later ones are to be put right.
        """

        async def unit(connection: AsyncConnection) -> Epoch | None:
            time = (await connection.scalars(sweep.the_time())).one()
            epoch = Epoch(name=name, began=None if after is None else time)
            if after is None:
                await connection.execute(
                    presence.add_secret().values(name=_EPOCH, value=epoch.written)
                )
                there = (await connection.scalars(presence.secret(_EPOCH))).one()
                return epoch if there == epoch.written else None
            change = sweep.replace_secret(_EPOCH, after.written, epoch.written)
            return epoch if (await connection.execute(change)).rowcount else None

        return await self._store.write(unit)

    async def put_right(self, epoch: Epoch, *, claimed: timedelta, given: timedelta) -> int:
        """Send again what the broker before lost, and watch what runs; returns how many are sent.

        Any number of servers may do it at once, and again after one of them has died: only what
        went out before the epoch began is touched. A claim lasts `claimed`, a lease `given`.
        """
        began = epoch.began
        if began is None:
            return 0
        moved, place, until = 0, -1, began + claimed
        while ids := await self._ids(sweep.in_the_exchange(place, _IDS)):
            place = ids[-1]
            moved += await self._by_id(ids, lambda some: sweep.send_lost(some, began, until))
            await self._by_id(
                ids, lambda some: sweep.watch_since(some, began, given.total_seconds())
            )
        done = Epoch(name=epoch.name, began=None)
        await self._change(sweep.replace_secret(_EPOCH, epoch.written, done.written))
        return moved

    async def recover_from_lost_exchange(self, *, limit: int = STARTS) -> int:
        """Everything that was in an exchange that is gone is sent again, as a new attempt.

        Its workers are gone with it: a task that ran as `limit` of them ended fails.
        """
        recovered = 0

        async def unit(connection: AsyncConnection) -> int:
            ids = list(await connection.scalars(sweep.lost_with_the_exchange(ROWS)))
            found = (await connection.execute(lease.held(ids))).all() if ids else []
            ran = await _of_living_jobs(
                connection, [row for row in found if row.state == TaskState.RUNNING]
            )
            if others := sorted(set(ids) - {row.id for row in ran}):
                await connection.execute(sweep.send_anew(others))
            tally = Tally()
            await lose_attempts(connection, ran, "ended with its server", tally, limit=limit)
            await tally.write(connection)
            return len(ids)

        while some := await self._store.write(unit):
            recovered += some
        await self._change(sweep.drop_secret(_EPOCH))  # nothing is lost any more
        return recovered

    # --- by id --------------------------------------------------------------------------

    async def _ids(self, statement: sa.Select[Any]) -> list[int]:
        async def unit(connection: AsyncConnection) -> list[int]:
            return sorted(await connection.scalars(statement))

        return await self._store.read(unit)

    async def _by_id(self, ids: Sequence[int], change: Callable[[Sequence[int]], sa.Update]) -> int:
        """Change tasks that were found without a lock, some in each transaction; how many did."""
        return sum([await self._change(change(some)) for some in chunks(ids, ROWS)])

    async def _change(self, statement: sa.Update | sa.Delete) -> int:
        async def unit(connection: AsyncConnection) -> int:
            return int((await connection.execute(statement)).rowcount)

        return await self._store.write(unit)


async def _of_living_jobs(
    connection: AsyncConnection, rows: Sequence[sa.Row[Any]]
) -> list[sa.Row[Any]]:
    if not rows:
        return []
    jobs = recording.living_jobs({row.job_id for row in rows})
    living = {job.id for job in await connection.execute(jobs)}
    return [row for row in rows if row.job_id in living]


def _running(row: sa.Row[Any]) -> Running:
    return Running(
        task_id=TaskId(row.id),
        attempt=row.attempt,
        leased=bool(row.leased),
        beats=row.beats,
        left=_seconds(row.due_at, row.now),
        timeout=row.timeout,
        spent=_seconds(row.now, row.started_at),
        started_at=row.started_at,
    )


def _seconds(until: datetime | None, since: datetime | None) -> float:
    return 0.0 if until is None or since is None else (until - since).total_seconds()


def _too_long(timeout: float | None) -> str:
    return f"it ran longer than its timeout of {timeout:g} s, and its worker did not end it"
