"""Stores jobs with their tasks and edges, inside a transaction."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import DaneError, KeyReused, SourceConflict
from dane_core.job import JobId
from dane_server.graph import Graph
from dane_server.storage.ahead import Ahead
from dane_server.storage.chunk import ROWS, chunks, fitting
from dane_server.storage.claiming import Claiming
from dane_server.storage.nodes import LINKS, links_of, tree_of, written
from dane_server.storage.statements import submission as sql
from dane_server.storage.stored import JustStored
from dane_server.storage.tables import NAMELESS
from dane_server.storage.trip import defer, read
from dane_server.storage.view import NewJob, Once, Submitted

_Outcomes = dict[int, Submitted | DaneError]
_Placed = list[tuple[int, NewJob]]


async def store_jobs(
    connection: AsyncConnection, new_jobs: Sequence[NewJob], asked: Claiming | None = None
) -> list[Submitted | DaneError]:
    """Store jobs; in place of one that cannot be stored stands why. A bad one fails alone.

    What is `asked` is claimed along the way, as far as it is nobody else's turn.
    """
    echoes = _echoes(new_jobs)
    placed = [(place, new) for place, new in enumerate(new_jobs) if place not in echoes]
    outcomes = await _replayed(connection, placed)
    outcomes |= await _in_conflict(connection, _without(placed, outcomes))
    fresh = _without(placed, outcomes)
    for (place, new), added in zip(
        fresh, await _add_jobs(connection, [new for _, new in fresh], asked), strict=True
    ):
        outcomes[place] = added
        if new.once:
            own = {"key": new.once.key, "job": added.job_id}
            await defer(connection, sql.settle_request_key(), own)
    refused = [
        new.once.key
        for place, new in placed
        if new.once and isinstance(outcomes[place], SourceConflict)
    ]
    if refused:
        await defer(connection, sql.drop_request_keys(refused))
    outcomes |= {place: _echo(outcomes[first]) for place, first in echoes.items()}
    return [outcomes[place] for place in range(len(new_jobs))]


def _echoes(new_jobs: Sequence[NewJob]) -> dict[int, int]:
    """Requests that another one of the same batch makes already, and which one that is."""
    first: dict[Once, int] = {}
    keyed = [(place, new.once) for place, new in enumerate(new_jobs) if new.once]
    return {place: first[once] for place, once in keyed if first.setdefault(once, place) != place}


def _echo(outcome: Submitted | DaneError) -> Submitted | DaneError:
    if isinstance(outcome, Submitted):
        return Submitted(job_id=outcome.job_id, replayed=True)
    return outcome


def _without(placed: _Placed, outcomes: _Outcomes) -> _Placed:
    return [(place, new) for place, new in placed if place not in outcomes]


async def _replayed(connection: AsyncConnection, placed: _Placed) -> _Outcomes:
    """Take the request keys; for one that is taken, its job, or that it was another request."""
    keyed = [(place, new.once) for place, new in placed if new.once]
    outcomes: _Outcomes = {}
    for place, wanted in keyed:
        added = await connection.execute(
            sql.claim_request_keys().values(request_key=wanted.key, digest=wanted.digest)
        )
        if added.rowcount:
            continue
        taken = (await connection.execute(sql.request_keys([wanted.key]))).one()
        same = taken.digest == wanted.digest
        outcomes[place] = (
            Submitted(job_id=JobId(taken.job_id), replayed=True) if same else KeyReused(wanted.key)
        )
    return outcomes


async def _in_conflict(connection: AsyncConnection, placed: _Placed) -> _Outcomes:
    """One source_id always has one source_url: those that say otherwise."""
    urls: dict[str, str] = {}
    for _, new in placed:
        urls.setdefault(new.spec.source_id, new.spec.source_url)
    known: dict[str, str] = {}
    for some in chunks(sorted(urls), ROWS):
        rows = [{"source_id": source_id, "source_url": urls[source_id]} for source_id in some]
        await defer(connection, sql.add_sources(), rows)
        found = await read(connection, sql.source_urls(), {"source_ids": some})
        known |= {row.source_id: row.source_url for row in found}
    return {
        place: SourceConflict(new.spec.source_id, known[new.spec.source_id])
        for place, new in placed
        if known[new.spec.source_id] != new.spec.source_url
    }


async def _add_jobs(
    connection: AsyncConnection, new_jobs: Sequence[NewJob], asked: Claiming | None
) -> list[Submitted]:
    if not new_jobs:
        return []
    owner_ids = await _owner_ids(connection, {new.owner for new in new_jobs})
    ahead = await Ahead.found(connection, new_jobs, asked)
    job_rows = [_job_row(new, owner_ids[new.owner]) for new in new_jobs]
    jobs = [row async for row in _added(connection, sql.add_jobs(), job_rows)]
    rows = (
        {"job_id": job.id, **row, "owner_id": owner_ids[new.owner]}
        for job, new in zip(jobs, new_jobs, strict=True)
        for row in ahead.rows(new, job.created_at)
    )
    added = _added(connection, sql.add_tasks(), rows)
    node_ids = [row.id async for row in added]
    for some in chunks(_edge_rows(new_jobs, node_ids), LINKS):
        await defer(connection, sql.add_edges(), some)
    return _submitted(new_jobs, jobs, node_ids, ahead)


def _submitted(
    new_jobs: Sequence[NewJob], jobs: Sequence[sa.Row[Any]], node_ids: Sequence[int], ahead: Ahead
) -> list[Submitted]:
    found, first = [], 0
    unrouted = ahead.unrouted
    for new, job in zip(new_jobs, jobs, strict=True):
        behind = first + new.graph.nodes
        job_id, ids = JobId(job.id), node_ids[first:behind]
        view = None
        if isinstance(new.graph, Graph):
            view = JustStored(new, new.graph, job_id, ids, job.created_at).view
        claims, more = ahead.claims(new, job_id, ids)
        found.append(
            Submitted(
                job_id=job_id,
                replayed=False,
                view=view,
                claims=claims,
                unrouted=unrouted,
                more=more,
            )
        )
        first = behind
    return found


def _edge_rows(new_jobs: Sequence[NewJob], node_ids: Sequence[int]) -> Iterator[dict[str, int]]:
    first = 0
    for new in new_jobs:
        for src, dst in links_of(new.graph):
            yield {"src": node_ids[first + src], "dst": node_ids[first + dst]}
        first += new.graph.nodes


async def _owner_ids(connection: AsyncConnection, names: Collection[str]) -> Mapping[str, int]:
    """The ids of owners; one that nobody has heard of yet is written down."""
    known = {"": NAMELESS}
    if named := sorted(set(names).difference(known)):
        known |= await _known_owners(connection, named)
        if missing := [name for name in named if name not in known]:
            await connection.execute(sql.add_nameless())
            await connection.execute(sql.add_owners(), [{"name": name} for name in missing])
            known |= await _known_owners(connection, missing)
    return known


async def _known_owners(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in chunks(names, ROWS):
        found |= {row.name: row.id for row in await connection.execute(sql.owners_named(some))}
    return found


async def _added(
    connection: AsyncConnection, statement: sa.Insert, rows: Iterable[dict[str, Any]]
) -> AsyncIterator[sa.Row[Any]]:
    """Insert rows; what the store gave each, its id first, in the order of the rows.

    Rows are made some at a time, so that nobody else has to wait for all of them.

    The order of RETURNING is not promised; that the ids of one statement rise with its rows is
    (InnoDB: auto-increment of simple inserts; SQLite: AUTOINCREMENT).
    """
    for some in fitting(rows):
        for row in sorted(await read(connection, statement, some), key=lambda row: row.id):
            yield row


def _job_row(new: NewJob, owner_id: int) -> dict[str, Any]:
    spec, graph = new.spec, new.graph
    return {
        "source_id": spec.source_id,
        "source_url": spec.source_url,
        "type": spec.type,
        "priority": spec.priority,
        "metadata": written(spec.metadata),
        "shared": written(new.shared),
        "tree": tree_of(graph),
        "owner_id": owner_id,
        "total": graph.total,
        "active": graph.active,
    }
