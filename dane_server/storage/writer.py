"""Everything that changes the store in the ordinary course: each method is one transaction."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import DaneError, StoreUnreachable
from dane_core.message import (
    Answer,
    Ask,
    Gone,
    Heartbeat,
    Hello,
    Leased,
    Progress,
    Released,
    Started,
)
from dane_server.storage.candidates import Search
from dane_server.storage.claiming import (
    Claiming,
    claim_ready,
    mark_queued,
    mark_unroutable,
    start_jobs,
)
from dane_server.storage.engine import Store, patience_for
from dane_server.storage.judging import judge
from dane_server.storage.leasing import PATIENCE, STARTS
from dane_server.storage.presence import (
    lose_workers,
    note_news,
    route_some,
    see_workers,
)
from dane_server.storage.recording import record
from dane_server.storage.rejecting import count_forged
from dane_server.storage.statements import presence
from dane_server.storage.submission import store_jobs
from dane_server.storage.view import (
    Claim,
    NewJob,
    News,
    Place,
    Recorded,
    Rejection,
    Submitted,
    Zombie,
)


class Writer:
    """The only way to change the store. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._search = Search()

    # --- submitting ---------------------------------------------------------------------

    async def store_jobs(
        self, new_jobs: Sequence[NewJob], claiming: Claiming | None = None
    ) -> list[Submitted | DaneError]:
        """Store jobs with their tasks, all in one transaction; a bad one fails alone.

        In place of a job that cannot be stored stands why: SourceConflict or KeyReused. What
        can be sent at once is claimed along the way, if there is something to keep to: then
        whoever asks for it is to send it.
        """
        rows = sum(new.rows for new in new_jobs)
        return await self._store.write(
            lambda connection: store_jobs(connection, new_jobs, claiming),
            patience=patience_for(rows),
        )

    # --- dispatching --------------------------------------------------------------------

    async def claim_ready(
        self,
        *,
        window: int,
        limit: int,
        lease: timedelta,
        ageing: timedelta = timedelta(0),
        put_off: Callable[[float], None] = lambda _: None,
    ) -> list[Claim]:
        """Take tasks for sending, the most urgent first, `limit` at most, in fair shares.

        No more than `window` of a key are in the exchange at once. What is not confirmed
        before `lease` runs out is claimed again, by anyone. A job of which nothing is sent or
        runs counts as more urgent by one with each `ageing` it waits (0: never). `put_off` is
        told in how many seconds there may be more to claim though nobody says so (see `Claiming`).
        """
        asked = Claiming(
            window=window,
            limit=limit,
            lease=lease,
            ageing=ageing,
            put_off=put_off,
            search=self._search,
        )
        return await self._store.write(lambda connection: claim_ready(connection, asked))

    async def mark_sent(
        self, queued: Sequence[Claim], unroutable: Sequence[Claim], *, again: timedelta
    ) -> None:
        """Write down what the exchange said of a sending. Unknown outcomes are left to the lease.

        Unroutable tasks are tried `again` after some time, or as soon as a worker binds. Whoever
        holds the row of a job does not hold this up for long: that the job has begun is said with
        its next sending or its first answer then.
        """

        async def unit(connection: AsyncConnection) -> None:
            if queued:
                await mark_queued(connection, queued, _HORIZON)
            if unroutable:
                await mark_unroutable(connection, unroutable, again)

        async def with_jobs(connection: AsyncConnection) -> None:
            await unit(connection)
            await start_jobs(connection, queued)

        if queued:
            with suppress(StoreUnreachable):
                await self._store.write(with_jobs, patience=_FOR_JOBS)
                return
        await self._store.write(unit)

    # --- recording ----------------------------------------------------------------------

    async def record(self, answers: Sequence[Answer], *, window: int, lease: timedelta) -> Recorded:
        """Record how attempts ended, and let go what waited for them, in one transaction.

        Of several answers for one task the first counts. An answer is late, and changes
        nothing, when its attempt is not the task's current one or the task is settled.
        Successors for which the `window` of their key has room are claimed for sending along
        the way: a chain would otherwise pay a transaction more for each of its steps.
        """
        return await self._store.write(
            lambda connection: record(connection, answers, window=window, lease=lease)
        )

    async def count_forged(self, forged: Sequence[Rejection]) -> None:
        """Count reports whose token is not ours; nothing else becomes of them."""
        await self._store.write(lambda connection: count_forged(connection, forged))

    # --- what workers say ---------------------------------------------------------------

    async def note_reports(
        self,
        started: Sequence[Started],
        progress: Sequence[Progress],
        released: Sequence[Released],
        *,
        leased: Sequence[Leased] = (),
        heartbeats: Sequence[Heartbeat] = (),
        patience: timedelta = PATIENCE,
    ) -> Sequence[Zombie]:
        """Write down who runs what and how far, and take back what was handed back.

        What a worker has begun without our knowing stays with it for `patience` without a
        word. Returns who works on what is not theirs any more.
        """
        news = News(
            started=started,
            leased=leased,
            heartbeats=heartbeats,
            progress=progress,
            released=released,
        )
        return await self._store.write(
            lambda connection: note_news(connection, news, patience.total_seconds())
        )

    async def judge(
        self, asks: Sequence[Ask], *, limit: int = STARTS, patience: timedelta = PATIENCE
    ) -> list[str]:
        """Whether each ticket may run: "" for yes, or why not.

        A task is let start again `limit` times; what a living worker has stays with it, for
        `patience` without a word. A ticket that is refused is dropped. So what was sent
        before its job was paused is taken back here.
        """
        return await self._store.write(
            lambda connection: judge(
                connection, asks, limit=limit, patience=patience.total_seconds()
            )
        )

    async def see_workers(self, hellos: Sequence[Hello]) -> frozenset[str]:
        """Note which workers are here, what they offer and run; returns the paused keys."""
        return await self._store.write(lambda connection: see_workers(connection, hellos))

    async def forget_worker(self, worker: str) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(presence.forget_workers([worker]))

        await self._store.write(unit)

    async def lose_workers(self, gone: Sequence[Gone], *, limit: int = STARTS) -> int:
        """Forget workers that ended, and begin anew what was leased to them; returns how many.

        A task that has ended `limit` workers fails.
        """
        return await self._store.write(lambda connection: lose_workers(connection, gone, limit))

    async def route_again(self, keys: Sequence[str]) -> int:
        """A worker has bound these keys: what waited for one is ready. Returns how many.

        A walk: some at a time, each in a transaction of its own.
        """
        routed = 0
        for key in keys:
            place: Place | None = Place()
            while place is not None:
                some, place = await self.route_some(key, place)
                routed += some
        return routed

    async def route_some(self, key: str, place: Place) -> tuple[int, Place | None]:
        """One step of that walk; returns how many are ready, and where to go on."""
        return await self._store.write(
            lambda connection: route_some(connection, key, place, _ROUTED_AT_ONCE)
        )

    # --- sharing ------------------------------------------------------------------------

    async def shared_secret(self, name: str, proposal: str) -> str:
        """A secret that all servers on this store share; the first proposal is kept."""

        async def unit(connection: AsyncConnection) -> str:
            await connection.execute(presence.add_secret().values(name=name, value=proposal))
            return str((await connection.scalars(presence.secret(name))).one())

        return await self._store.write(unit)


#: Tasks that one step of a walk makes ready, under locks.
_ROUTED_AT_ONCE: Final = 500
#: Seconds for jobs that others may hold.
_FOR_JOBS: Final = 5.0
#: Somebody looks at a queued task again after this long, should nothing else have happened.
_HORIZON: Final = timedelta(hours=1)
