"""Connections to SQLite that go to their thread once for each statement, and not four times."""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Self, TypeVar

import aiosqlite

T = TypeVar("T")

#: Rows between two turns of an iteration, as aiosqlite has it; nobody here iterates.
_CHUNK = 64


def connect(path: str, **settings: Any) -> "Connection":
    """A connection, once awaited: what `aiosqlite.connect` would give, with cursors of ours."""
    connection = Connection(lambda: sqlite3.connect(path, **settings), _CHUNK)
    connection._thread.daemon = True
    return connection


class Connection(aiosqlite.Connection):
    """A connection whose cursors live for one statement.

    SQLAlchemy asks for a cursor, executes, fetches all rows and closes it. Each of these would
    be a message to the connection's thread and one back, which wakes the event loop.
    """

    def cursor(self) -> "_Cursor":  # type: ignore[override]  # of the same use to SQLAlchemy
        return _Cursor(self)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the connection in its thread."""
        turn: Awaitable[T] = self._execute(work, self._conn)  # type: ignore[no-untyped-call]
        return await turn


class _Outcome(NamedTuple):
    """All that came of a statement."""

    rows: Sequence[Any] = ()
    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None


class _Cursor:
    """What SQLAlchemy knows a cursor by. It has the rows when the statement is done."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outcome = _Outcome()

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:
        return self._outcome.description

    @property
    def rowcount(self) -> int:
        return self._outcome.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._outcome.lastrowid

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Self:
        self._outcome = await self._connection.run(
            lambda connection: _outcome(connection.execute(sql, parameters))
        )
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Self:
        self._outcome = await self._connection.run(
            lambda connection: _outcome(connection.executemany(sql, parameters))
        )
        return self

    async def fetchall(self) -> Sequence[Any]:
        return self._outcome.rows

    async def close(self) -> None:
        """It was closed in the thread."""


def _outcome(executed: sqlite3.Cursor) -> _Outcome:
    with closing(executed) as cursor:
        # Where a statement returns rows, what it has changed is counted as they are fetched.
        rows = cursor.fetchall() if cursor.description else ()
        return _Outcome(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
