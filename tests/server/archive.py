"""Finished jobs in great number: copies of one, made in the database by its Sequence engine."""

from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from dane_server.storage.tables import TIME, answers, attempts, edges, jobs, tasks

#: Copies of tasks that one statement makes.
_AT_ONCE: Final = 100_000

#: Of each table, the columns that hold ids of nodes, and of jobs, and which rows are a job's.
_COPIED: Final = (
    (jobs, (), ("id",), "job.id = {job}"),
    (tasks, ("id",), ("job_id",), "task.job_id = {job}"),
    (edges, ("src", "dst"), (), "edge.src BETWEEN {first} AND {last}"),
    (attempts, ("task_id",), (), "attempt.task_id BETWEEN {first} AND {last}"),
    (answers, ("task_id",), ("job_id",), "answer.job_id = {job}"),
)


def model_of(job_id: int) -> str:
    """Asks for what `copies` has to know: the job, its first and last node, the newest ones."""
    return (
        f"SELECT {job_id}, MIN(id), MAX(id), (SELECT MAX(id) FROM task), (SELECT MAX(id) FROM job)"
        f" FROM task WHERE job_id = {job_id}"
    )


def copies(model: Sequence[int], number: int) -> Iterator[str]:
    """Statements that copy a job, each copy a minute older and of a source of its own.

    With its nodes, edges, attempts and answers. All over one connection, and nobody else stores
    jobs meanwhile. The tables know afterwards what is in them, as the optimizer needs it.
    """
    job, first, last, newest, newest_job = model
    nodes = last - first + 1
    for table, of_nodes, of_jobs, mine in _COPIED:
        name = f"model_{table.name}"
        chosen = mine.format(job=job, first=first, last=last)
        yield f"CREATE TEMPORARY TABLE {name} AS SELECT * FROM {table.name} WHERE {chosen}"
        moved = dict.fromkeys(of_nodes, f"+ {newest - first + 1} + (n.seq - 1) * {nodes}")
        moved |= dict.fromkeys(of_jobs, f"+ {newest_job - job} + n.seq")
        columns = [column for column in table.columns if column.computed is None]
        names = ", ".join(f"`{column.name}`" for column in columns)
        values = ", ".join(_value(column, moved) for column in columns)
        step = max(_AT_ONCE // nodes, 1)
        for begin in range(1, number + 1, step):
            end = min(begin + step - 1, number)
            yield (
                f"INSERT INTO {table.name} ({names}) SELECT {values}"
                f" FROM seq_{begin}_to_{end} n STRAIGHT_JOIN {name} m"
            )
        yield f"DROP TEMPORARY TABLE {name}"
    yield "ANALYZE TABLE " + ", ".join(table.name for table, *_ in _COPIED)


def _value(column: sa.Column[object], moved: dict[str, str]) -> str:
    if column.name in moved:
        return f"m.`{column.name}` {moved[column.name]}"
    if column.type is TIME:
        return f"m.`{column.name}` - INTERVAL n.seq MINUTE"
    if column.name == "source_id":
        return "CONCAT(m.source_id, '-', n.seq)"
    return f"m.`{column.name}`"
