"""Takes tasks for sending, inside a transaction.

Whoever claims tasks of a key holds the key's row until the commit: two runners that counted
the same window at once would both fill it. Rows are locked in this order everywhere: tasks,
jobs, keys. A claim takes keys before tasks, but no task that another holds, and so waits for
none.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId, TaskId
from dane_core.routing import MAX_PRIORITY
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.view import Claim


async def claim_ready(
    connection: AsyncConnection, *, window: int, limit: int, lease: timedelta
) -> list[Claim]:
    """Claim the most urgent tasks of each key, as far as its window has room.

    Keys share what may be claimed: one that workers empty faster than it is filled would
    otherwise leave nothing to those behind it.
    """
    keys = sorted(await connection.scalars(sql.keys_ready()))
    if len(keys) > limit:
        keys = sorted(random.sample(keys, limit))
    rooms: dict[str, int] = {}
    held = await _held(connection, keys) if keys else frozenset()  # not those just paused
    for key in sorted(held):
        sent = (await connection.scalars(sql.sent_of_key(key, window))).one()
        rooms[key] = window - sent
    claims = [claim for some in (await _share_out(connection, rooms, limit)) for claim in some]
    ids = sorted(claim.task_id for claim in claims)
    if ids:
        await connection.execute(sql.claim(ids, lease.total_seconds()))
    return claims


async def _share_out(
    connection: AsyncConnection, rooms: dict[str, int], limit: int
) -> list[list[Claim]]:
    """The tasks to claim of each key; what one key does not use is shared among the others."""
    found: dict[str, list[Claim]] = {}
    shares = even_shares(limit, rooms)
    while more := [key for key, share in shares.items() if share > len(found.get(key, ()))]:
        for key in more:
            # All over again: what this transaction has locked already it finds once more.
            found[key] = [
                _claim(row) for row in await connection.execute(sql.sendable(key, shares[key]))
            ]
            if len(found[key]) < shares[key]:
                rooms[key] = len(found[key])
        shares = even_shares(limit, rooms)
    return [found[key] for key in sorted(found)]


def even_shares(limit: int, rooms: Mapping[str, int]) -> dict[str, int]:
    """Share `limit` places among keys: to each the same, but no more than it has room for."""
    shares: dict[str, int] = {}
    fullest_first = sorted(sorted(rooms.items(), reverse=True), key=lambda one: one[1])
    for asked, (key, room) in enumerate(fullest_first):
        shares[key] = max(min(room, limit // (len(rooms) - asked)), 0)
        limit -= shares[key]
    return shares


def _claim(row: sa.Row[Any]) -> Claim:
    return Claim(
        task_id=TaskId(row.id),
        job_id=JobId(row.job_id),
        key=row.task_key,
        name=row.name,
        args=orjson.loads(row.args) if row.args else {},
        priority=MAX_PRIORITY - row.rank,
        timeout=row.timeout,
        attempt=row.attempt,
        dispatch=row.dispatch + 1,
        fanin=row.fanin,
    )


async def claim_along(
    connection: AsyncConnection, ready: Sequence[int], window: int, lease: timedelta
) -> list[Claim]:
    """Claim tasks that this transaction has made ready, as far as there is room for them."""
    if not ready:
        return []
    rooms: dict[str, int] = {}
    claims: list[Claim] = []
    for row in await connection.execute(sql.claimable(ready)):
        claims.append(_claim(row))
        rooms[row.task_key] = 0
    held = await _held(connection, sorted(rooms))
    for key in rooms:
        sent = (await connection.scalars(sql.sent_of_key(key, window))).one()
        rooms[key] = window - sent if key in held else 0
    fitting: list[Claim] = []
    for claim in claims:
        if rooms[claim.key] > 0:
            rooms[claim.key] -= 1
            fitting.append(claim)
    if fitting:
        ids = sorted(claim.task_id for claim in fitting)
        await connection.execute(sql.claim(ids, lease.total_seconds()))
    return fitting


async def _held(connection: AsyncConnection, keys: Sequence[str]) -> frozenset[str]:
    """Hold the windows of some keys, given in order; returns those that are not paused."""
    rows = (await connection.execute(sql.hold_keys(keys))).all()
    if missing := sorted(set(keys).difference(row.task_key for row in rows)):
        await connection.execute(sql.add_keys(), [{"task_key": key} for key in missing])
        rows = (await connection.execute(sql.hold_keys(keys))).all()
    return frozenset(row.task_key for row in rows if not row.paused)


def tickets(claims: Sequence[Claim]) -> list[tuple[int, int]]:
    return sorted((claim.task_id, claim.dispatch) for claim in claims)
