"""Everything that changes the store in the ordinary course: each method is one transaction."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import DaneError
from dane_core.message import Answer, Ask, Hello, Offer, Progress, Released, Started
from dane_core.states import SENT, TaskState
from dane_server.storage.claiming import claim_ready, tickets
from dane_server.storage.engine import Store
from dane_server.storage.recording import record
from dane_server.storage.statements import dispatch, presence
from dane_server.storage.submission import store_jobs, written
from dane_server.storage.view import Claim, NewJob, Recorded, Submitted


class Writer:
    """The only way to change the store. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- submitting ---------------------------------------------------------------------

    async def store_jobs(self, new_jobs: Sequence[NewJob]) -> list[Submitted | DaneError]:
        """Store jobs with their tasks, all in one transaction; a bad one fails alone.

        In place of a job that cannot be stored stands why: SourceConflict or KeyReused.
        """
        return await self._store.write(lambda connection: store_jobs(connection, new_jobs))

    # --- dispatching --------------------------------------------------------------------

    async def claim_ready(self, *, window: int, limit: int, lease: timedelta) -> list[Claim]:
        """Take tasks for sending, the most urgent first, `limit` at most.

        No more than `window` of a key are in the exchange at once. What is not confirmed
        before `lease` runs out is claimed again, by anyone.
        """
        return await self._store.write(
            lambda connection: claim_ready(connection, window=window, limit=limit, lease=lease)
        )

    async def mark_sent(
        self, queued: Sequence[Claim], unroutable: Sequence[Claim], *, again: timedelta
    ) -> None:
        """Write down what the exchange said of a sending. Unknown outcomes are left to the lease.

        Unroutable tasks are tried `again` after some time, or as soon as a worker binds.
        """

        async def unit(connection: AsyncConnection) -> None:
            if queued:
                await connection.execute(
                    dispatch.mark_queued(tickets(queued), _HORIZON.total_seconds())
                )
                await connection.execute(dispatch.start_jobs(sorted({c.job_id for c in queued})))
            if unroutable:
                await connection.execute(
                    dispatch.mark_unroutable(tickets(unroutable), again.total_seconds())
                )

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

    # --- what workers say ---------------------------------------------------------------

    async def note_reports(
        self,
        started: Sequence[Started],
        progress: Sequence[Progress],
        released: Sequence[Released],
    ) -> None:
        """Write down who runs what and how far, and take back what was handed back."""

        async def unit(connection: AsyncConnection) -> None:
            for start in started:
                await connection.execute(
                    presence.mark_running(
                        start.ticket.task_id, start.ticket.attempt, start.worker, start.runtime
                    )
                )
            for step in progress:
                await connection.execute(
                    presence.note_progress(
                        step.ticket.task_id, step.ticket.attempt, step.fraction, step.message
                    )
                )
            for back in released:
                ticket = back.ticket
                await connection.execute(
                    presence.take_back(ticket.task_id, ticket.attempt, ticket.dispatch, back.delay)
                )

        await self._store.write(unit)

    async def judge(self, asks: Sequence[Ask]) -> list[str]:
        """Whether each ticket may still run: "" for yes, or why not.

        A ticket that is refused is dropped. So what was sent before its job was paused is
        taken back here: no other message would bring it to a worker after the pause.
        """

        async def unit(connection: AsyncConnection) -> list[str]:
            ids = sorted({ask.ticket.task_id for ask in asks})
            rows = {row.id: row for row in await connection.execute(presence.asked_about(ids))}
            return [_objection(rows.get(ask.ticket.task_id), ask) for ask in asks]

        objections = await self._store.read(unit)
        dropped = [
            Released(ticket=ask.ticket, worker=ask.worker)
            for ask, objection in zip(asks, objections, strict=True)
            if objection == _PAUSED
        ]
        if dropped:
            await self.note_reports([], [], dropped)
        return objections

    async def see_workers(self, hellos: Sequence[Hello]) -> frozenset[str]:
        """Note which workers are here, what they offer and run; returns the paused keys."""

        async def unit(connection: AsyncConnection) -> frozenset[str]:
            for hello in hellos:
                seen = await connection.execute(
                    presence.see_worker(hello.worker).values(running=_running(hello))
                )
                if seen.rowcount == 0:
                    await connection.execute(presence.add_worker().values(**_worker_row(hello)))
                if hello.fresh or seen.rowcount == 0:
                    await _note_offers(connection, hello.offers)
            return frozenset(await connection.scalars(dispatch.paused_keys()))

        return await self._store.write(unit)

    async def forget_worker(self, worker: str) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(presence.forget_worker(worker))

        await self._store.write(unit)

    async def route_again(self, keys: Sequence[str]) -> int:
        """A worker has bound these keys: what waited for one is ready. Returns how many."""

        async def unit(connection: AsyncConnection) -> int:
            return (await connection.execute(presence.routable_again(keys))).rowcount

        return await self._store.write(unit)

    # --- sharing ------------------------------------------------------------------------

    async def shared_secret(self, name: str, proposal: str) -> str:
        """A secret that all servers on this store share; the first proposal is kept."""

        async def unit(connection: AsyncConnection) -> str:
            await connection.execute(presence.add_secret().values(name=name, value=proposal))
            return str((await connection.scalars(presence.secret(name))).one())

        return await self._store.write(unit)


#: Somebody looks at a queued task again after this long, should nothing else have happened.
_HORIZON: Final = timedelta(hours=1)


_PAUSED: Final = "the job was paused"


def _objection(row: sa.Row[Any] | None, ask: Ask) -> str:
    if row is None:
        return "the job was deleted"
    ticket = ask.ticket
    if row.attempt != ticket.attempt:
        return f"attempt {ticket.attempt} was superseded by attempt {row.attempt}"
    if row.paused or row.cancelling:
        return _PAUSED if row.paused else "the job is being cancelled"
    state = TaskState(row.state)
    if state not in SENT and state is not TaskState.RUNNING:
        return f"the task is {state}"
    return "" if row.dispatch == ticket.dispatch else "the task was sent again since"


def _worker_row(hello: Hello) -> Mapping[str, Any]:
    return {
        "id": hello.worker,
        "host": hello.host,
        "pid": hello.pid,
        "slots": hello.slots,
        "inbox": hello.inbox,
        "task_keys": written([offer.key for offer in hello.offers]),
        "running": _running(hello),
    }


def _running(hello: Hello) -> str:
    return written([ticket.task_id for ticket in hello.running])


async def _note_offers(connection: AsyncConnection, offers: Sequence[Offer]) -> None:
    for offer in offers:
        body = written(
            {
                "types": offer.types,
                "description": offer.description,
                "args_schema": offer.args_schema,
                "version": offer.version,
            }
        )
        await connection.execute(presence.add_task_keys().values(task_key=offer.key))
        await connection.execute(presence.change_task_key(offer.key).values(offer=body))
