"""What the sweeper changes in the store: each method is one transaction, or a walk of many."""

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import TaskState
from dane_server.storage.chunk import ROWS
from dane_server.storage.engine import Store
from dane_server.storage.statements import presence, sweep


class Sweeps:
    """Makes ready what nobody else will. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def sweep(self, *, limit: int = 500, silence: timedelta) -> int:
        """Make ready what nobody else will; returns how many tasks are worth another sweep.

        Those are: claimed but not confirmed in time, failed for now and due again, and, as a
        probe, some that have waited for a worker long enough: when one binds it says so, and
        all of them go. Workers silent for `silence` are forgotten.
        """

        async def unit(connection: AsyncConnection) -> int:
            moved = 0
            for state in (TaskState.DISPATCHING, TaskState.BACKOFF, TaskState.UNROUTABLE):
                ids = list(await connection.scalars(sweep.overdue(state, limit)))
                if ids:
                    await connection.execute(sweep.ready_again(ids, state))
                    moved += len(ids) if state is not TaskState.UNROUTABLE else 0
            await connection.execute(presence.forget_silent_workers(silence.total_seconds()))
            return moved

        return await self._store.write(unit)

    async def next_due(self) -> float | None:
        """Seconds until the next task has to be looked at; None when none waits for a time."""

        async def unit(connection: AsyncConnection) -> float | None:
            due, time = (await connection.execute(sweep.next_due())).one()
            return None if due is None else float((due - time).total_seconds())

        return await self._store.read(unit)

    async def recover_from_lost_exchange(self) -> int:
        """Everything that was in an exchange that is gone is sent again, as a new attempt."""
        recovered = 0

        async def unit(connection: AsyncConnection) -> int:
            ids = list(await connection.scalars(sweep.lost_with_the_exchange(ROWS)))
            if ids:
                await connection.execute(sweep.send_anew(ids))
            return len(ids)

        while some := await self._store.write(unit):
            recovered += some
        return recovered
