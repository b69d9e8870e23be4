"""Takes tasks for sending, inside a transaction."""

from collections.abc import Sequence
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
    """Claim the most urgent tasks of each key, as far as its window has room."""
    claims: list[Claim] = []
    for key in (await connection.scalars(sql.keys_ready())).all():
        if len(claims) >= limit:
            break
        sent = (await connection.scalars(sql.sent_of_key(key, window))).one()
        room = min(window - sent, limit - len(claims))
        if room > 0:
            rows = await connection.execute(sql.sendable(key, room))
            claims += [_claim(row) for row in rows]
    ids = sorted(claim.task_id for claim in claims)
    if ids:
        await connection.execute(sql.claim(ids, lease.total_seconds()))
    return claims


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
        rooms[row.task_key] = window
    for key in rooms:
        rooms[key] -= (await connection.scalars(sql.sent_of_key(key, window))).one()
    fitting: list[Claim] = []
    for claim in claims:
        if rooms[claim.key] > 0:
            rooms[claim.key] -= 1
            fitting.append(claim)
    if fitting:
        ids = sorted(claim.task_id for claim in fitting)
        await connection.execute(sql.claim(ids, lease.total_seconds()))
    return fitting


def tickets(claims: Sequence[Claim]) -> list[tuple[int, int]]:
    return sorted((claim.task_id, claim.dispatch) for claim in claims)
