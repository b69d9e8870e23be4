"""Gathers what the oracle judges: rows by plain SQL, queues, processes, logs."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dane_server.storage.tables import answers, attempts, edges, jobs, metadata, secrets, tasks
from tests.faults.history import History, Seen
from tests.faults.oracle import (
    SETTLED,
    AnswerRow,
    AttemptRow,
    EdgeRow,
    Footprint,
    JobRow,
    TaskRow,
)

_ESTABLISHED: Final = "01"  # in /proc/net/tcp


async def rows(engine: AsyncEngine, *, ahead: float = 0) -> dict[str, Any]:
    """What the tables hold, as the fields of `Evidence`, in one state of the store.

    Its clock is so many seconds ahead of ours.
    """
    now = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=ahead)
    async with engine.connect() as connection:
        return {
            "jobs": [_job(row) for row in await connection.execute(sa.select(jobs))],
            "tasks": [_task(row, now) for row in await connection.execute(sa.select(tasks))],
            "edges": [
                EdgeRow(src=row.src, dst=row.dst, reopened=row.reopened)
                for row in await connection.execute(sa.select(edges))
            ],
            "attempts": [
                AttemptRow(task_id=row.task_id, number=row.number, outcome=row.outcome)
                for row in await connection.execute(sa.select(attempts))
            ],
            "answers": [_answer(row) for row in await connection.execute(sa.select(answers))],
        }


def _job(row: sa.Row[Any]) -> JobRow:
    counters = ("total", "active", "held", "succeeded", "failed", "forgiven")
    return JobRow(
        id=row.id,
        source_id=row.source_id,
        status=row.status,
        paused=row.paused,
        finished=row.finished_at is not None,
        cancelled=row.cancelled,
        skipped=row.skipped,
        **{name: getattr(row, name) for name in counters},
    )


def _task(row: sa.Row[Any], now: datetime) -> TaskRow:
    same = ("id", "job_id", "state", "outcome", "attempt", "pending", "released", "allow_failure")
    retry = orjson.loads(row.retry) if row.retry else {}
    return TaskRow(
        key=row.task_key,
        due_in=(row.due_at - now).total_seconds() if row.due_at else None,
        leased=row.leased,
        timeout=row.timeout,
        max_delay=retry.get("max_delay", 600.0),
        message=row.message or "",
        **{name: getattr(row, name) for name in same},
    )


def _answer(row: sa.Row[Any]) -> AnswerRow:
    body = orjson.loads(row.body)
    value = body.get("value") if isinstance(body, dict) else None
    return AnswerRow(task_id=row.task_id, attempt=row.attempt, value=value)


async def secret(engine: AsyncEngine, name: str) -> str:
    """What the servers on this store share under a name; empty if nothing."""
    async with engine.connect() as connection:
        found = await connection.scalars(sa.select(secrets.c.value).where(secrets.c.name == name))
        return found.one_or_none() or ""


async def empty(engine: AsyncEngine) -> None:
    """Remove every row, so that one store serves many tests."""
    async with engine.begin() as connection:
        for table in metadata.tables.values():
            await connection.execute(sa.delete(table))


class Watch:
    """Writes down each task once it is seen settled, and again if it is ever seen otherwise."""

    def __init__(self, engine: AsyncEngine, history: History) -> None:
        self._engine = engine
        self._history = history
        self._seen: dict[int, tuple[str, int | None, int]] = {}

    async def look(self) -> None:
        async with self._engine.connect() as connection:
            for row in await _ends(connection, [*self._seen]):
                end = (row.state, row.outcome, row.attempt)
                if self._seen.get(row.id) != end:
                    self._seen[row.id] = end
                    self._history.note(
                        Seen(
                            task_id=row.id,
                            attempt=row.attempt,
                            state=row.state,
                            outcome=row.outcome,
                        )
                    )


async def _ends(connection: AsyncConnection, seen: list[int]) -> list[sa.Row[Any]]:
    settled = tasks.c.state.in_(sorted(SETTLED))
    columns = sa.select(tasks.c.id, tasks.c.state, tasks.c.outcome, tasks.c.attempt)
    wanted = sa.or_(settled, tasks.c.id.in_(seen[-1000:])) if seen else settled
    return [*await connection.execute(columns.where(tasks.c.task_key.is_not(None), wanted))]


def footprint(pid: int, *, broker: int | None, store: int | None) -> Footprint:
    """What a process holds now; connections are told apart by the ports they go to."""
    links = [_link(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    ports = _remote_ports(pid)
    remote = [ports.get(link[8:-1]) for link in links if link.startswith("socket:[")]
    return Footprint(
        files=len(links),
        threads=len([*Path(f"/proc/{pid}/task").iterdir()]),
        to_broker=remote.count(broker) if broker else 0,
        to_store=remote.count(store) if store else 0,
    )


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def _remote_ports(pid: int) -> Mapping[str, int]:
    """The remote port of each established connection, by the inode of its socket."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    found = (line.split() for line in lines)
    return {
        fields[9]: int(fields[2].rpartition(":")[2], 16)
        for fields in found
        if fields[3] == _ESTABLISHED
    }
