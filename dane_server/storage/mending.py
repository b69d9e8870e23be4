"""What the doctor changes in the store; each method is one transaction."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import TaskState
from dane_server.storage.chunk import chunks
from dane_server.storage.engine import Store, patience_for
from dane_server.storage.statements import doctor as sql
from dane_server.storage.statements import release
from dane_server.storage.statements.sweep import watch
from dane_server.storage.tally import column

#: How often a recount goes through the nodes of a job.
_PASSES: Final = 4


class Mending:
    """Puts right what the store keeps counted. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def recount(self, job_id: int) -> bool:
        """Count a job anew, with everything of it locked; false when it is there no more.

        Who waits for what is counted first, then what waits for nothing goes ahead, and the
        counters and the end of the job follow from where its tasks are then.
        """

        async def unit(connection: AsyncConnection) -> bool:
            for some in chunks(ids):
                await connection.execute(sql.lock_nodes(some))
            if (await connection.execute(sql.lock_job(job_id))).one_or_none() is None:
                return False
            await _free(connection, ids)
            [*rows] = await connection.execute(sql.recounted([job_id]))
            await connection.execute(sql.set_counters(job_id, _counted(rows)))
            return True

        ids = await self._nodes_of(job_id)
        return await self._store.write(unit, patience=patience_for(_PASSES * len(ids)))

    async def _nodes_of(self, job_id: int) -> list[int]:
        """They are the same for as long as there is the job."""

        async def unit(connection: AsyncConnection) -> list[int]:
            return sorted(await connection.scalars(sql.nodes_of(job_id)))

        return await self._store.read(unit)

    async def bury(self, job_ids: Sequence[int]) -> None:
        """Let tasks of deleted jobs be removed like those of any job that is deleted."""

        async def unit(connection: AsyncConnection) -> None:
            rows = [{"job_id": job_id} for job_id in sorted(job_ids)]
            await connection.execute(sql.bury_again(), rows)

        await self._store.write(unit)

    async def put_on_lease(self, ids: Sequence[int], seconds: float) -> int:
        """Let tasks that run nowhere live on a lease: without a heartbeat it ends."""

        async def unit(connection: AsyncConnection) -> int:
            return (await connection.execute(watch(sorted(ids), seconds))).rowcount

        return await self._store.write(unit)


async def _free(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Make `pending` what the edges say, and let go what waits for nothing, join after join."""
    for some in chunks(ids):
        await connection.execute(sql.let_go_of_done(some))
        await connection.execute(sql.close_edges_from_done(some))
    joins: Sequence[int] = ids
    while joins:
        for some in chunks(ids):
            await _wait_rightly(connection, some)
        free: list[Any] = []
        for some in chunks(ids):
            free += await connection.execute(sql.blocked_by_nothing(some))
        joins = [row.id for row in free if row.task_key is None]
        for some in chunks(joins):
            await connection.execute(release.pass_joins(), {"ids": some})
        for some in chunks(row.id for row in free if row.task_key is not None):
            await connection.execute(release.make_ready(), {"ids": some})


async def _wait_rightly(connection: AsyncConnection, ids: Sequence[int]) -> None:
    right: defaultdict[int, list[int]] = defaultdict(list)
    for row in await connection.execute(sql.wrong_nodes_among(ids)):
        right[int(row.counted)].append(row.id)
    for number, nodes in sorted(right.items()):
        await connection.execute(sql.wait_for(nodes, number))


def _counted(rows: Sequence[Any]) -> dict[str, int]:
    counted: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        if row.state is None:
            continue
        if name := column(TaskState(row.state), allow_failure=bool(row.allow_failure)):
            counted[name] += row.number
    counted["active"] += max((row.walks for row in rows), default=0)
    return counted
