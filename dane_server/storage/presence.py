"""Writes down who is here and what runs where, inside a transaction."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.message import Gone, Heartbeat, Hello, Leased, Offer, Started, Ticket
from dane_core.routing import inbox_queue
from dane_core.states import IN_FLIGHT, SENT, TaskState
from dane_server.storage.chunk import ROWS, chunks
from dane_server.storage.leasing import ON_MESSAGE, PATIENCE, lose_attempts
from dane_server.storage.nodes import written
from dane_server.storage.statements import act, dispatch, lease
from dane_server.storage.statements import presence as sql
from dane_server.storage.tally import Tally
from dane_server.storage.view import News, Place, Zombie


class _Ticketed(Protocol):
    @property
    def ticket(self) -> Ticket: ...


R = TypeVar("R", bound=_Ticketed)


async def note_news(connection: AsyncConnection, news: News, patience: float) -> list[Zombie]:
    """Write down what runs, how far it is, and what was handed back.

    What a worker has begun unknown to us stays with it for `patience` seconds without a word.
    Returns who works on what is not theirs any more.
    """
    standing = await _standing(connection, news)
    renewed, unknown, handed_off = _by_heartbeat(news.heartbeats, standing)
    on_message, on_lease = _begun([*news.started, *unknown], standing)
    for started in _at_a_time(on_message):
        await connection.execute(sql.mark_running(started, ON_MESSAGE.total_seconds()))
    for started in _at_a_time(on_lease):
        await connection.execute(sql.mark_running_on_lease(started, patience))
    for leased in _at_a_time([*handed_off, *news.leased]):
        await connection.execute(sql.hand_off(leased))
    for some in chunks(renewed, ROWS):
        await connection.execute(sql.renew({ticket: renewed[ticket] for ticket in some}))
    for steps in _at_a_time(news.progress):
        await connection.execute(sql.note_progress(steps))
    for released in _at_a_time(news.released):
        await connection.execute(sql.take_back(released))
    if news.heartbeats:
        await connection.execute(sql.see_workers(sorted({beat.worker for beat in news.heartbeats})))
    return await _zombies(connection, news, standing)


def _at_a_time(reports: Iterable[R]) -> Iterable[list[R]]:
    """Reports some at a time, the newest one of each task only, in the order of the tasks."""
    newest: dict[int, R] = {}
    for report in reports:
        ticket = report.ticket
        known = newest.get(ticket.task_id)
        if known is None or _age(known.ticket) <= _age(ticket):
            newest[ticket.task_id] = report
    return chunks((newest[task_id] for task_id in sorted(newest)), ROWS)


def _age(ticket: Ticket) -> tuple[int, int]:
    return ticket.attempt, ticket.dispatch


async def _standing(connection: AsyncConnection, news: News) -> Mapping[int, sa.Row[Any]]:
    reports: Iterable[_Ticketed] = chain(news.started, news.leased, news.progress, news.released)
    named = chain(
        (report.ticket for report in reports), *(beat.running for beat in news.heartbeats)
    )
    rows: dict[int, sa.Row[Any]] = {}
    for some in chunks(sorted({ticket.task_id for ticket in named}), ROWS):
        rows |= {row.id: row for row in await connection.execute(sql.standing_of(some))}
    return rows


def _begun(
    started: Iterable[Started], standing: Mapping[int, sa.Row[Any]]
) -> tuple[list[Started], list[Started]]:
    """What has begun from the message that was sent last, and what from any other."""
    on_message: list[Started] = []
    on_lease: list[Started] = []
    for one in started:
        row = standing.get(one.ticket.task_id)
        if row is None or not _is_current(row, one.ticket):
            continue
        if row.state in SENT and row.dispatch == one.ticket.dispatch:
            on_message.append(one)
        elif row.state != TaskState.RUNNING:
            on_lease.append(one)
    return on_message, on_lease


def _by_heartbeat(
    heartbeats: Iterable[Heartbeat], standing: Mapping[int, sa.Row[Any]]
) -> tuple[dict[Ticket, float], list[Started], list[Leased]]:
    """Which leases go on, and what runs though its start, or its hand-off, was not heard of."""
    renewed: dict[Ticket, float] = {}
    unknown: list[Started] = []
    handed_off: list[Leased] = []
    for beat in heartbeats:
        for ticket in beat.running:
            row = standing.get(ticket.task_id)
            if row is None or not _is_current(row, ticket):
                continue
            if ticket in beat.leased and _has_it_unknown(row, beat.worker):
                handed_off.append(
                    Leased(ticket=ticket, worker=beat.worker, runtime=0.0, lease=beat.lease)
                )
            elif row.state == TaskState.RUNNING:
                renewed[ticket] = beat.lease
            else:
                unknown.append(Started(ticket=ticket, worker=beat.worker, runtime=0.0))
    return renewed, unknown, handed_off


def _has_it_unknown(row: sa.Row[Any], worker: str) -> bool:
    """Whether it is not known that a task lives without its message, at this worker.

    If the worker died nobody would see.
    """
    if row.state != TaskState.RUNNING:
        return True
    return not row.leased and row.worker in (None, worker)


def _is_current(row: sa.Row[Any], ticket: Ticket) -> bool:
    return row.attempt == ticket.attempt and TaskState(row.state) in IN_FLIGHT


async def _zombies(
    connection: AsyncConnection, news: News, standing: Mapping[int, sa.Row[Any]]
) -> list[Zombie]:
    pairs = {(leased.worker, leased.ticket) for leased in news.leased}
    pairs |= {(beat.worker, ticket) for beat in news.heartbeats for ticket in beat.running}
    stale = [
        (worker, ticket)
        for worker, ticket in pairs
        if (row := standing.get(ticket.task_id)) is None or not _is_current(row, ticket)
    ]
    if not stale:
        return []
    found = await connection.execute(sql.inboxes_of(sorted({worker for worker, _ in stale})))
    inboxes = {row.id: row.inbox for row in found}
    return [
        Zombie(inbox=inboxes.get(worker) or inbox_queue(worker), ticket=ticket)
        for worker, ticket in sorted(stale, key=lambda pair: (pair[0], pair[1].task_id))
    ]


# --- who comes and goes -----------------------------------------------------------------------


async def see_workers(connection: AsyncConnection, hellos: Sequence[Hello]) -> frozenset[str]:
    """Note which workers are here, what they offer and run; returns the paused keys."""
    offers: dict[str, Offer] = {}
    # In one order everywhere: another server may hear other workers with the same keys.
    for hello in sorted(hellos, key=lambda hello: hello.worker):
        is_new = not await _see(connection, hello)
        if is_new:
            added = await connection.execute(sql.add_worker().values(**_worker_row(hello)))
            if added.rowcount == 0:  # another server was quicker
                await _see(connection, hello)
        if hello.fresh or is_new:
            offers |= {offer.key: offer for offer in hello.offers}
    await _note_offers(connection, [offers[key] for key in sorted(offers)])
    return frozenset(await connection.scalars(dispatch.paused_keys()))


async def _see(connection: AsyncConnection, hello: Hello) -> bool:
    """Whether a worker was here already."""
    change = sql.see_worker(hello.worker).values(running=_running(hello))
    return (await connection.execute(change)).rowcount > 0


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
        await connection.execute(sql.add_task_keys().values(task_key=offer.key))
        await connection.execute(sql.change_task_key(offer.key).values(offer=body))


async def route_some(
    connection: AsyncConnection, key: str, place: Place, limit: int
) -> tuple[int, Place | None]:
    """Some tasks of a key that found no queue may go; returns how many, and where to go on.

    Never back to the first: what finds no queue again, being of a type that is not bound, would
    go round for ever.
    """
    some = act.tasks_of_key(key, TaskState.UNROUTABLE, place, limit)
    found = (await connection.execute(some)).all()
    if not found:
        return 0, None
    moved = (await connection.execute(sql.routable_again([row.id for row in found]))).rowcount
    return moved, Place(*found[-1][1:])


async def lose_workers(connection: AsyncConnection, gone: Sequence[Gone], limit: int) -> int:
    """Forget workers that have ended, and begin anew what was leased to them; returns how many.

    What they ran from a message the exchange gives to somebody else, who asks. Should nobody do
    so for a while, the message is gone too.
    """
    reasons = {one.worker: one.reason for one in gone}
    ids = sorted(await connection.scalars(lease.held_by(sorted(reasons))))
    lost: dict[str, list[sa.Row[Any]]] = {}
    for some in chunks(ids, ROWS):
        rows = (await connection.execute(lease.held(some))).all()
        theirs = [row for row in rows if row.worker in reasons]
        for row in theirs:
            if row.leased:
                lost.setdefault(row.worker, []).append(row)
        if on_message := [row.id for row in theirs if not row.leased]:
            await connection.execute(lease.look_soon(on_message, PATIENCE.total_seconds()))
    tally = Tally()
    for worker, rows in sorted(lost.items()):
        reason = f"is gone: {reasons[worker]}" if reasons[worker] else "is gone"
        await lose_attempts(connection, rows, reason, tally, limit=limit)
    await tally.write(connection)
    # Last, as heartbeats do: tasks are locked before workers.
    await connection.execute(sql.forget_workers(sorted(reasons)))
    return sum(map(len, lost.values()))
