"""Judges what workers ask about, and carries the ruling out, inside a transaction."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.message import Ask
from dane_core.states import TaskState
from dane_server.storage.chunk import ROWS, chunks
from dane_server.storage.leasing import ON_MESSAGE, begun_by, quarantine
from dane_server.storage.ruling import Act, Ruling, Standing, rule
from dane_server.storage.statements import lease
from dane_server.storage.statements import presence as sql
from dane_server.storage.tally import Tally


async def judge(
    connection: AsyncConnection, asks: Sequence[Ask], *, limit: int, patience: float
) -> list[str]:
    """Rule on each ask in the order they came: "" to run, or why not."""
    rows = {
        row.id: row
        for some in chunks(sorted({ask.ticket.task_id for ask in asks}), ROWS)
        for row in await connection.execute(lease.held(some))
    }
    standings = await _standings(connection, rows)
    names = {ask.worker for ask in asks}
    holders = {row.worker for row in rows.values() if row.worker} - names
    here = await connection.execute(sql.inboxes_of(sorted(holders)))
    living = names | {row.id for row in here}
    rulings: list[Ruling] = []
    todo: defaultdict[Act, dict[int, Ask]] = defaultdict(dict)
    for ask in asks:
        task_id = ask.ticket.task_id
        ruling = rule(ask, standings.get(task_id), living, limit=limit)
        rulings.append(ruling)
        if ruling.act is not Act.NONE:
            todo[ruling.act][task_id] = ask
            standings[task_id] = _after(standings[task_id], ruling.act, ask)
    await _carry_out(connection, rows, todo, patience)
    return [ruling.objection for ruling in rulings]


async def _standings(
    connection: AsyncConnection, rows: dict[int, sa.Row[Any]]
) -> dict[int, Standing]:
    """Where tasks stand; those of deleted jobs are missing."""
    # Read apart: a join would lock the jobs too, in another order than those who count them.
    job_ids = sorted({row.job_id for row in rows.values()})
    jobs = {job.id: job for job in await connection.execute(sql.jobs_of(job_ids))}
    return {
        row.id: Standing(
            attempt=row.attempt,
            dispatch=row.dispatch,
            state=TaskState(row.state),
            worker=row.worker,
            leased=bool(row.leased),
            is_over=bool(row.is_over),
            renewed=row.beats > 0,
            starts=row.starts,
            paused=bool(jobs[row.job_id].paused),
            cancelling=bool(jobs[row.job_id].cancelling),
        )
        for row in rows.values()
        if row.job_id in jobs
    }


def _after(task: Standing, act: Act, ask: Ask) -> Standing:
    """Where a task stands for those who ask later in the same batch."""
    if act is Act.START:
        return replace(
            task,
            state=TaskState.RUNNING,
            worker=ask.worker,
            leased=False,
            renewed=False,
            starts=task.starts + 1,
        )
    if act is Act.LEASE:
        return replace(task, leased=True, is_over=False)
    state = TaskState.READY if act is Act.TAKE_BACK else TaskState.FAILED
    return replace(task, state=state, leased=False)


async def _carry_out(
    connection: AsyncConnection,
    rows: dict[int, sa.Row[Any]],
    todo: dict[Act, dict[int, Ask]],
    patience: float,
) -> None:
    tally = Tally()
    if starts := todo.get(Act.START):
        workers = {task_id: ask.worker for task_id, ask in starts.items()}
        starters = {task_id: begun_by(rows[task_id], who) for task_id, who in workers.items()}
        change = sql.let_start(workers, starters, ON_MESSAGE.total_seconds())
        await connection.execute(change)
        for task_id in starts:
            row = rows[task_id]
            tally.move(row.job_id, TaskState(row.state), TaskState.RUNNING)
    # After the starts: whoever was let start may lose it to another ask of the same batch.
    if leased := todo.get(Act.LEASE):
        await connection.execute(lease.keep(sorted(leased), patience))
    if dropped := todo.get(Act.TAKE_BACK):
        await connection.execute(sql.take_back_dropped(sorted(dropped)))
    accused = [(rows[task_id], rows[task_id].starters) for task_id in todo.get(Act.QUARANTINE, {})]
    await quarantine(connection, accused, tally)
    await tally.write(connection)
