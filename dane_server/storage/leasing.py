"""Takes tasks back from workers that are lost, inside a transaction."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import TaskState
from dane_server.storage.recording import found_out, settle
from dane_server.storage.statements import lease as sql
from dane_server.storage.statements import recording
from dane_server.storage.tally import Tally

#: A task that may have ended its worker is let start again this often.
STARTS: Final = 3
#: What may run at a worker stays with it for so long without a word of it.
PATIENCE: Final = timedelta(seconds=60)
#: A task runs on its message for this long at most before it goes onto a lease in any case: its
#: message may be gone, and with it whatever the worker said of its end.
ON_MESSAGE: Final = timedelta(minutes=2)

#: The number that a lost attempt is kept with.
_LOST: Final = 500


async def lose_attempts(
    connection: AsyncConnection,
    rows: Sequence[sa.Row[Any]],
    reason: str,
    tally: Tally,
    *,
    limit: int,
) -> list[int]:
    """The attempts at some running tasks are lost together with their workers.

    They are closed, and the tasks are ready for another; one that has ended `limit` workers
    fails. `rows` are locked, as `lease.held` gives them; `reason` goes on after a worker's
    name: "is gone: ended by SIGKILL". Returns the ids of what became ready behind a failure.
    """
    running = [row for row in rows if row.state == TaskState.RUNNING]
    if not running:
        return []
    starters = {row.id: begun_by(row, row.worker) for row in running}
    await connection.execute(sql.count_starts(starters))
    poisonous = [row for row in running if row.starts + 1 >= limit]
    others = [row for row in running if row.starts + 1 < limit]
    if others:
        await connection.execute(recording.add_attempts(), [_lost(row, reason) for row in others])
        await connection.execute(sql.begin_anew([row.id for row in others]))
        for row in others:
            tally.move(row.job_id, TaskState.RUNNING, TaskState.READY)
    return await quarantine(connection, [(row, starters[row.id]) for row in poisonous], tally)


async def quarantine(
    connection: AsyncConnection, begun: Sequence[tuple[sa.Row[Any], str]], tally: Tally
) -> list[int]:
    """Fail tasks that end the workers which begin them, each with these starters as JSON.

    Returns the ids of what became ready behind those that may fail.
    """
    if not begun:
        return []
    endings = [found_out(row, _LOST, _accusation(starters)) for row, starters in begun]
    return await settle(connection, endings, tally)


def begun_by(row: sa.Row[Any], worker: str | None) -> str:
    """Who has begun a task, with one worker more, and with its holder: JSON.

    The first to begin it was never asked about; it is known as long as it holds the task.
    """
    before = orjson.loads(row.starters) if row.starters else []
    is_held = row.state == TaskState.RUNNING and row.worker not in (None, worker, *before)
    holder = [row.worker] if is_held else []
    return orjson.dumps([*before, *holder, worker or "unknown"]).decode()


def _accusation(starters: str) -> str:
    """In words: which workers a task has ended; one that came back counts once."""
    names = list(dict.fromkeys(orjson.loads(starters)))
    workers = "worker" if len(names) == 1 else "workers"
    return f"it has ended {len(names)} {workers} that began it: {', '.join(names)}"


def _lost(row: sa.Row[Any], reason: str) -> dict[str, Any]:
    return {
        "task_id": row.id,
        "number": row.attempt,
        "worker": row.worker,
        "outcome": _LOST,
        "message": f"worker {row.worker or 'unknown'} {reason}",
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "finished_at": row.now,
        "runtime": None,
    }
