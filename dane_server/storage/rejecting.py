"""Counts the answers that are not recorded, inside a transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.chunk import ROWS, chunks
from dane_server.storage.statements import rejecting as sql
from dane_server.storage.view import Rejection


async def count_rejections(
    connection: AsyncConnection, rejections: Sequence[Rejection], attempts: Mapping[int, int]
) -> None:
    """Add to what is shown of each task; what is of no task is counted under task 0.

    `attempts` are the current ones of the tasks that exist. A forged ticket can name any
    attempt: those that never were are counted as attempt 0.
    """
    if not rejections:
        return
    times: Counter[tuple[int, int, str]] = Counter()
    workers: dict[tuple[int, int, str], str | None] = {}
    for one in rejections:
        newest = attempts.get(one.ticket.task_id)
        task_id = 0 if newest is None else one.ticket.task_id
        attempt = one.ticket.attempt if one.ticket.attempt <= (newest or 0) else 0
        key = (task_id, attempt, one.reason)
        times[key] += 1
        workers[key] = one.worker
    time = (await connection.scalars(sql.the_time())).one()
    for some in chunks(sorted(times), ROWS):
        rows = [
            {
                "task_id": key[0],
                "attempt": key[1],
                "reason": key[2],
                "times": times[key],
                "worker": workers[key],
                "last_at": time,
            }
            for key in some
        ]
        await connection.execute(sql.count_rejections(), rows)


async def count_forged(connection: AsyncConnection, forged: Sequence[Rejection]) -> None:
    """Count what came with a token that is not ours."""
    attempts: dict[int, int] = {}
    for some in chunks(sorted({one.ticket.task_id for one in forged}), ROWS):
        found = await connection.execute(sql.attempts_of(some))
        attempts |= {row.id: row.attempt for row in found}
    await count_rejections(connection, forged, attempts)
